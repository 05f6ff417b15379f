"""Verdicts: what the intervals say, nothing else; and claims and scales that come with the project hold together."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from m3ae_scale.errors import InputError
from m3ae_scale.evaluation.claims.files import claims, read_claim, read_scale
from m3ae_scale.evaluation.claims.verdict import estimate, judge, overall

SEEDS = range(5)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=9).filter(lambda v: max(v) - min(v) > 1e-3))
def test_the_interval_is_scipys(values: list[float]) -> None:
    found = estimate(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert found.low == pytest.approx(low, abs=1e-6) and found.high == pytest.approx(high, abs=1e-6)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.02, 0.03, 0.025, 0.02, 0.03], "supported"),
        ([-0.02, -0.03, -0.025, -0.02, -0.03], "not supported"),
        ([0.02, -0.03, 0.025, -0.02, 0.03], "undecided"),
    ],
)
def test_a_verdict_is_that_of_the_paired_differences(gains: list[float], verdict: str) -> None:
    # Seeds differ far more than arms do: unpaired, nothing could be told.
    worse = {seed: 0.5 + 0.1 * seed for seed in SEEDS}
    better = {seed: worse[seed] + gain for seed, gain in zip(SEEDS, gains, strict=True)}
    judged = judge("a", "b", "top1", better, worse)
    assert judged.verdict == verdict and judged.difference.mean == pytest.approx(np.mean(gains))


def test_one_seed_decides_nothing() -> None:
    judged = judge("a", "b", "top1", {0: 1.0, 1: 5.0}, {0: 0.0, 2: 0.0})
    assert judged.verdict == "undecided" and judged.difference.n == 1 and judged.difference.low == -math.inf


def test_two_equal_arms_are_rarely_told_apart() -> None:
    draw = np.random.default_rng(0)
    verdicts = [
        judge("a", "b", "top1", dict(enumerate(draw.normal(size=5))), dict(enumerate(draw.normal(size=5)))).verdict
        for _ in range(1000)
    ]
    assert verdicts.count("supported") == pytest.approx(25, abs=15)  # 2.5%
    assert verdicts.count("not supported") == pytest.approx(25, abs=15)


def test_a_claim_needs_all_and_one_contradiction_refutes_it() -> None:
    worse = dict.fromkeys(SEEDS, 0.5)
    up, down, level = (
        judge("a", "b", "top1", {s: 0.5 + g + 0.001 * s for s in SEEDS}, worse, 3) for g in (0.1, -0.1, -0.002)
    )
    assert overall([up, up]) == "supported"
    assert overall([up, level]) == "undecided"
    assert overall([up, level, down]) == "not supported"


def test_every_claim_is_complete_at_every_scale() -> None:
    assert set(claims()) == {"multimodal", "ood", "scaling", "text_mask", "unpaired"}
    for scale in map(read_scale, ("minutes", "cpu_hours", "hour", "paper")):
        for claim in map(read_claim, claims()):
            named = {arm for comparison in claim.compare for arm in (comparison.better, comparison.worse)}
            assert named <= claim.arms_at(scale.scale).keys(), (claim.claim, scale.scale)


def test_a_claim_that_names_no_arm_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="expected one of multimodal"):
        read_claim("multimodel")
    path = tmp_path / "mine.yaml"
    path.write_text("{claim: a, statement: b, source: c, arms: {x: {}, y: {}}, compare: [{better: x, worse: z}]}")
    with pytest.raises(InputError, match="'z' is no arm; expected one of x, y"):
        read_claim(str(path))
