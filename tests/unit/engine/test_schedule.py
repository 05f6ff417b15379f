import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.engine.schedule import warmup_cosine


@given(peak=st.floats(1e-6, 1), warmup=st.integers(0, 50), rest=st.integers(1, 100), share=st.floats(0, 1))
def test_rises_to_the_peak_then_falls_to_the_end(peak: float, warmup: int, rest: int, share: float) -> None:
    total, final = warmup + rest, share * peak
    rates = [warmup_cosine(step, peak, warmup, total, final) for step in range(total + 1)]
    assert rates[warmup] == pytest.approx(peak)
    assert rates[-1] == pytest.approx(final, abs=1e-12)
    assert all(a <= b + 1e-15 for a, b in itertools.pairwise(rates[: warmup + 1]))
    assert all(a >= b - 1e-15 for a, b in itertools.pairwise(rates[warmup:]))
    assert warmup_cosine(total + 10, peak, warmup, total, final) == pytest.approx(final, abs=1e-12)
