"""ZeRO-3 steps whatever each rank holds: the modules called, and their order, never depend on the batch."""

import itertools

from processes import run_ranks
from tiny import KINDS

SECONDS = 150  # a hang fails here: the longest run seen took 40 s


def test_every_combination_of_content_on_two_ranks() -> None:
    combinations = [list(pair) for pair in itertools.product(KINDS, repeat=2)]
    errors = run_ranks(2, "on_ranks:contents", combinations, timeout=SECONDS)
    for combination, error in zip(combinations, errors, strict=True):
        assert error <= 1e-4, f"{combination}: gradients differ by {error:.1e}"


def test_four_ranks_that_hold_four_different_kinds() -> None:
    combinations = [["paired", "text", "image", "no_words"], ["text", "text", "all_visible", "text"]]
    errors = run_ranks(4, "on_ranks:contents", combinations, timeout=SECONDS)
    for combination, error in zip(combinations, errors, strict=True):
        assert error <= 1e-4, f"{combination}: gradients differ by {error:.1e}"
