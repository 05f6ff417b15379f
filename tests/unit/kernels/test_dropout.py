"""Dropping is a function of sample, place and channel: it can be cut, packed and repeated at will."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.kernels.dropout import drop_path, dropout, mix, uniform

SEEDS = torch.arange(4096) * 7919


def test_uniform_is_uniform() -> None:
    values = uniform(torch.arange(200_000))
    assert values.min() >= 0 and values.max() < 1
    histogram = torch.histc(values, 20, 0, 1)
    expected = 10_000
    chi_square = float(((histogram - expected) ** 2 / expected).sum())
    assert chi_square < 43.8  # the 99.9th percentile at 19 degrees of freedom


def test_mix_scrambles_neighbours() -> None:
    flipped = mix(SEEDS) ^ mix(SEEDS + 1)
    bits = sum(((flipped >> bit) & 1).float().mean().item() for bit in range(64))
    assert 30 < bits < 34  # half of the 64 bits


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_rate_is_kept_and_the_mean_too(rate: float) -> None:
    x = torch.ones(4096, 64)
    dropped = dropout(x, SEEDS, place=5, rate=rate)
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.05)
    paths = drop_path(x, SEEDS, torch.arange(4096), place=5, rate=rate)
    whole_rows = (paths == 0).all(1) | (paths != 0).all(1)
    assert whole_rows.all()
    assert (paths[:, 0] == 0).float().mean().item() == pytest.approx(rate, abs=0.03)


@given(cut=st.integers(1, 63), place=st.integers(0, 10_000))
def test_a_split_width_drops_the_same_values(cut: int, place: int) -> None:
    x = torch.ones(8, 64)
    whole = dropout(x, SEEDS[:8], place, 0.5)
    left = dropout(x[:, :cut], SEEDS[:8], place, 0.5)
    right = dropout(x[:, cut:], SEEDS[:8], place, 0.5, first_channel=cut)
    assert torch.equal(torch.cat([left, right], 1), whole)


def test_places_and_samples_drop_different_values() -> None:
    x = torch.ones(64, 64)
    here, there = dropout(x, SEEDS[:64], 1, 0.5), dropout(x, SEEDS[:64], 2, 0.5)
    assert 0.4 < (here == there).float().mean() < 0.6
    assert 0.4 < (here[0] == here[1]).float().mean() < 0.6 or (here[0] != here[1]).any()


def test_drop_path_is_the_reference_formula(root) -> None:  # type: ignore[no-untyped-def]
    import numpy as np

    recorded = np.load(root / "tests/fixtures/m3ae_public/misc.npz")
    x = torch.from_numpy(recorded["drop_path0.3/x"])
    kept = torch.from_numpy(np.floor(0.7 + recorded["drop_path0.3/uniform"]))
    ours = x * (kept / (1.0 - 0.3))
    torch.testing.assert_close(ours, torch.from_numpy(recorded["drop_path0.3/y"]))
