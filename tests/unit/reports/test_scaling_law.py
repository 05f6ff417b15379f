"""A known law must come back from its own data, and data that cannot tell must be refused."""

import numpy as np
import pytest

from m3ae_scale.reports.scaling_law import Fit, Law, NoFit, Point, fit_law

SIZES = (1e5, 4e5, 1.6e6, 6.4e6)
LENGTHS = (4e3, 1.6e4, 6.4e4, 2.56e5)
LAWS = (
    Law(floor=0.5, size_factor=20.0, size_exponent=0.35, data_factor=30.0, data_exponent=0.4),
    Law(floor=1.7, size_factor=3.0, size_exponent=0.2, data_factor=200.0, data_exponent=0.6),
)


def drawn(law: Law, noise: float, seed: int, sizes=SIZES, lengths=LENGTHS) -> list[Point]:
    rng = np.random.default_rng(seed)
    return [
        Point(n, d, float(law.loss(n, d)) * float(np.exp(noise * rng.standard_normal())))
        for n in sizes
        for d in lengths
    ]


@pytest.mark.parametrize("law", LAWS)
def test_a_law_without_noise_comes_back_exactly(law: Law) -> None:
    fit = fit_law(drawn(law, 0.0, 0), resamples=3)
    assert isinstance(fit, Fit)
    assert fit.law == pytest.approx(law, rel=1e-3)
    assert np.abs(fit.residuals).max() < 1e-6


@pytest.mark.parametrize("law", LAWS)
def test_the_intervals_hold_the_truth_about_as_often_as_they_say(law: Law) -> None:
    held = {name: 0 for name in ("floor", "size_exponent", "data_exponent")}
    predicted, seeds = 0, 8
    for seed in range(seeds):
        fit = fit_law(drawn(law, 0.003, seed), resamples=150)
        assert isinstance(fit, Fit), fit
        for name in held:
            low, high = fit.interval(name)
            held[name] += low <= getattr(law, name) <= high
        _, low, high = fit.predicted(2 * SIZES[-1], 2 * LENGTHS[-1])
        predicted += low <= float(law.loss(2 * SIZES[-1], 2 * LENGTHS[-1])) <= high
    assert min(*held.values(), predicted) >= seeds - 2, (held, predicted)


def test_one_broken_run_does_not_bend_the_law() -> None:
    """What the Huber loss is for: least squares moves its exponents by far more."""
    points = drawn(LAWS[0], 0.001, 0)
    points[5] = points[5]._replace(loss=points[5].loss * 1.5)
    fit = fit_law(points, resamples=3)
    assert isinstance(fit, Fit)
    assert fit.law.size_exponent == pytest.approx(LAWS[0].size_exponent, rel=0.1)
    assert fit.law.data_exponent == pytest.approx(LAWS[0].data_exponent, rel=0.1)
    assert np.argmax(np.abs(fit.residuals)) == 5 and fit.residuals[5] == pytest.approx(np.log(1.5), rel=0.05)


@pytest.mark.parametrize(
    ("sizes", "lengths"), [(SIZES[:2], LENGTHS), (SIZES, LENGTHS[:2]), (SIZES[:2], LENGTHS[:3]), ((), ())]
)
def test_too_few_points_are_refused(sizes, lengths) -> None:
    refused = fit_law(drawn(LAWS[0], 0.0, 0, sizes, lengths))
    assert isinstance(refused, NoFit)
    assert f"{len(sizes) * len(lengths)} trainings of" in refused.reason


def test_a_loss_that_does_not_fall_with_the_size_is_refused() -> None:
    flat = Law(floor=0.5, size_factor=0.0, size_exponent=0.3, data_factor=30.0, data_exponent=0.4)
    refused = fit_law(drawn(flat, 0.01, 1), resamples=40)
    assert isinstance(refused, NoFit) and "model size" in refused.reason


def test_noise_over_narrow_ranges_is_refused() -> None:
    points = drawn(LAWS[0], 0.1, 3, sizes=(1e6, 1.1e6, 1.2e6), lengths=(1e4, 1.1e4, 1.2e4))
    assert isinstance(fit_law(points, resamples=40), NoFit)


def test_the_best_size_grows_as_compute_is_shared_out() -> None:
    """On the line N x D = C the minimum of the law moves as C^(b / (a + b))."""
    law = LAWS[0]
    best = []
    for compute in (1e12, 1e14):
        sizes = np.geomspace(1e2, 1e12, 200_001)
        best.append(sizes[np.argmin(law.loss(sizes, compute / sizes))])
    assert np.log(best[1] / best[0]) / np.log(100) == pytest.approx(law.optimal_exponent, abs=1e-3)
