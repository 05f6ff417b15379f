"""What counts as a spike, and which steps a rollback has condemned."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.training.guard import LossHistory, condemned_steps

LOSSES = st.lists(st.floats(0.1, 10.0), min_size=20, max_size=60)


@given(LOSSES, st.floats(0.1, 20.0), st.floats(0.01, 100.0))
def test_the_unit_of_the_loss_does_not_matter(losses: list[float], loss: float, unit: float) -> None:
    one = LossHistory(100, losses).spreads_above(loss)
    assert LossHistory(100, [unit * past for past in losses]).spreads_above(unit * loss) == pytest.approx(
        one, rel=1e-6, abs=1e-6
    )


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.1))
def test_noise_is_no_spike_and_a_spike_among_noise_is(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    history = LossHistory(100, list(3.0 + noise * rng.standard_normal(100)))
    assert history.spreads_above(3.0 + 4 * noise) < 10
    assert history.spreads_above(3.0 + 20 * max(noise, 0.03)) > 10


@given(st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_bad_steps_that_slipped_in_do_not_raise_the_bar(bad: int, seed: int) -> None:
    losses = list(3.0 + 0.1 * np.random.default_rng(seed).standard_normal(100))
    losses[:bad] = [1000.0] * bad  # fewer than half
    assert LossHistory(100, losses).spreads_above(8.0) > 10


def test_a_falling_loss_and_a_short_history_are_no_spikes() -> None:
    falling = [10.0 * 0.97**step for step in range(100)]
    history = LossHistory(100)
    for loss in falling:
        assert history.spreads_above(loss) < 10
        history.losses.append(loss)
    assert LossHistory(100, [1.0] * 19).spreads_above(1e9) == 0.0
    assert LossHistory(100, [1.0] * 20).spreads_above(1.05) < 10 < LossHistory(100, [1.0] * 20).spreads_above(1.2)


def test_a_window_shorter_than_enough_is_enough_when_full() -> None:
    history = LossHistory(6, [1.0] * 5)
    assert history.spreads_above(100.0) == 0.0
    history.losses.append(1.0)
    assert history.spreads_above(100.0) > 10


def test_only_rollbacks_condemn_steps_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"step": 4, "action": "skip", "margin": 0},
        {"step": 9, "action": "rollback", "margin": 1},
        {"step": 30, "action": "rollback", "margin": 0},
    ]
    events = tmp_path / "guard" / "events.jsonl"
    assert condemned_steps(tmp_path) == set()
    events.parent.mkdir()
    events.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 40, "action": "rollb')
    assert condemned_steps(tmp_path) == {8, 9, 10, 30}
