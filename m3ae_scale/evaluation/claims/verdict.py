"""From figures by seed to intervals and a verdict. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

Verdict = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the ends of its t interval."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Judged:
    """One comparison: the differences, seed by seed, of the arm that should be better and the other."""

    better: str
    worse: str
    measure: str
    difference: Estimate
    verdict: Verdict


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Return the mean of `values` and its t interval at `level`; of a single value the interval is infinite."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, -math.inf, math.inf, n)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * spread
    return Estimate(mean, mean - half, mean + half, n)


def judge(
    better: str,
    worse: str,
    measure: str,
    of_better: Mapping[int, float],
    of_worse: Mapping[int, float],
    comparisons: int = 1,
) -> Judged:
    """Compare two arms by seed: the seeds that both have, paired.

    Supported: the 95% interval of the mean difference lies above 0. Not supported: it lies below 0, where the level is
    that of one among `comparisons` (Bonferroni), as one contradiction refutes a claim. Undecided: neither.
    """
    differences = [of_better[seed] - of_worse[seed] for seed in sorted(of_better.keys() & of_worse.keys())]
    difference = estimate(differences)
    verdict: Verdict = "undecided"
    if difference.low > 0:
        verdict = "supported"
    elif estimate(differences, 1 - 0.05 / comparisons).high < 0:
        verdict = "not supported"
    return Judged(better, worse, measure, difference, verdict)


def overall(judged: Sequence[Judged]) -> Verdict:
    """A claim is supported when each of its comparisons is, and not supported when one of them is contradicted."""
    verdicts = {one.verdict for one in judged}
    if verdicts == {"supported"}:
        return "supported"
    return "not supported" if "not supported" in verdicts else "undecided"
