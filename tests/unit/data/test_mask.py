"""Masks: the reference's arithmetic, and that a sample's mask depends on its name alone."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.data.mask import keep_count, visible_mask
from m3ae_scale.data.rng import stream, stream_seed

FIXTURES = Path(__file__).parents[2] / "fixtures" / "m3ae_public"


def test_keep_count_is_the_reference_arithmetic_rounding_errors_included() -> None:
    table = json.loads((FIXTURES / "misc.json").read_text())["keep_length_table_len_ratio_keep"]
    assert len(table) > 50
    for length, ratio, keep in table:
        assert keep_count(length, ratio) == keep, (length, ratio)


@given(length=st.integers(0, 300), ratio=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_a_mask_shows_exactly_the_kept_count(length: int, ratio: float, seed: int) -> None:
    mask = visible_mask(length, ratio, stream(seed))
    assert mask.shape == (length,) and mask.dtype == np.bool_
    assert mask.sum() == keep_count(length, ratio)


def test_every_token_is_shown_equally_often() -> None:
    shown = sum(visible_mask(16, 0.75, stream(0, i)).astype(int) for i in range(4000))
    assert np.all(np.abs(shown / 4000 - 0.25) < 0.04)  # more than five standard deviations


def test_a_stream_is_named_by_every_part_of_its_identity() -> None:
    identity = (1, 2, "cc12m/00000/000000001", "crop")
    first = stream(*identity).random(4)
    assert np.array_equal(first, stream(*identity).random(4))
    others = [
        (2, *identity[1:]),
        (1, 3, *identity[2:]),
        (1, 2, "cc12m/00000/000000002", "crop"),
        (*identity[:3], "flip"),
    ]
    for other in others:
        assert not np.any(first == stream(*other).random(4)), other
    assert stream_seed("a", "b") != stream_seed("ab")


@given(st.lists(st.integers() | st.text(), min_size=1))
def test_a_seed_fits_int64(identity: list[int | str]) -> None:
    assert 0 <= stream_seed(*identity) < 2**63


def test_the_streams_stay_what_they_are() -> None:
    """A change here changes the masks and crops of every run that is resumed: it must be deliberate."""
    assert stream_seed(42, 0, "train/00000/000000000", "seed") == 8240488350693685329
    assert stream(42, "x").random(2).tolist() == [0.05521053542475429, 0.6355311263676933]
