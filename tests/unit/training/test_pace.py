"""Which ranks are called slow."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.training.pace import slow_ranks, work_seconds


@given(st.floats(0.001, 10.0), st.integers(2, 40), st.data())
def test_the_slow_one_is_found_whatever_its_place(seconds: float, ranks: int, data: st.DataObject) -> None:
    times = torch.full((ranks,), seconds, dtype=torch.float64)
    slow = data.draw(st.integers(0, ranks - 1))
    times[slow] *= 2
    assert slow_ranks(times, floor=0.0) == [slow]
    assert slow_ranks(times, floor=2 * seconds) == []


@given(st.lists(st.floats(1.0, 1.4), min_size=1, max_size=40))
def test_a_usual_spread_is_not_slow(times: list[float]) -> None:
    assert slow_ranks(torch.tensor(times, dtype=torch.float64), floor=0.0) == []


def test_the_fixed_piece_of_work_takes_time() -> None:
    assert 0 < work_seconds(torch.device("cpu"), size=64) < 10
