"""Reproduces a claim: runs the cells that are missing, judges, and writes one JSON and one page.

    FOLDER/<claim>.json, FOLDER/<claim>.html    the table, the differences, the verdict, and where each came from

What has not run yet is absent, and said to be.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from m3ae_scale.config import Experiment, TrackingConfig
from m3ae_scale.errors import InputError
from m3ae_scale.evaluation.claims.cells import Cell, make_cell, run_cell, write_data
from m3ae_scale.evaluation.claims.files import Claim, Comparison, Scale
from m3ae_scale.evaluation.claims.verdict import Estimate, Judged, estimate, judge, overall
from m3ae_scale.reports.chart import Interval, interval_chart
from m3ae_scale.reports.page import Page, Section, facts_of, write_page
from m3ae_scale.training.provenance import provenance
from m3ae_scale.training.tracking import Tracker, default_uri

Figures = dict[str, dict[int, dict[str, Any]]]  # arm -> seed -> what cell.json holds
# Every measure that a table shows, as people say it.
MEASURES = {
    "top1": "linear probe, accuracy",
    "knn_top1": "nearest neighbours, accuracy",
    "shifted_top1": "linear probe on shifted data, accuracy",
    "retained": "share of the accuracy above chance that is kept on shifted data",
    "knn_auroc": "detection of unknown classes by neighbours, AUROC",
    "mahalanobis_auroc": "detection of unknown classes by Mahalanobis distance, AUROC",
    "energy_auroc": "detection of unknown classes by energy, AUROC",
    "max_softmax_auroc": "detection of unknown classes by max-softmax, AUROC",
}


def cells_of(claim: Claim, scale: Scale, folder: Path) -> dict[tuple[str, int], Cell]:
    """Return every cell that `claim` needs at `scale`, by (arm, seed); seed after seed, so that all arms grow alike."""
    arms = claim.arms_at(scale.scale)
    return {(name, seed): make_cell(scale, folder, arm, seed) for seed in scale.seeds for name, arm in arms.items()}


def reproduce(claim: Claim, scale: Scale, folder: Path, say: Callable[[str], object]) -> Path:
    """Run what is missing of `claim` and write what was found; returns the page.

    Cells that another process is at are left to it, and waited for at the end: started twice, the work is shared out.
    """
    write_data(scale, folder, say)
    cells = cells_of(claim, scale, folder)
    left = dict(cells)
    for patience in (0, -1):  # seconds to wait for a cell's lock; -1: as long as it takes
        for (arm, seed), cell in list(left.items()):
            cell.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(cell.path.with_suffix(".lock"), timeout=patience):
                    found = cell.figures()
                    state = "kept" if found else "ran"
                    found = found or run_cell(cell)
            except Timeout:
                continue
            del left[arm, seed]
            say(
                f"cell    {len(cells) - len(left):3d} of {len(cells)}  {arm}, seed {seed}: "
                f"top-1 {found['metrics']['top1']:.1%}  ({state}, {sum(found['seconds'].values()):.0f} s, {cell.key})"
            )
    return write_claim(claim, scale, folder)


def gather(claim: Claim, scale: Scale, folder: Path) -> Figures:
    """Read what was measured of each arm and seed."""
    figures: Figures = {}
    for (arm, seed), cell in cells_of(claim, scale, folder).items():
        found = cell.figures()
        if found is not None:
            figures.setdefault(arm, {})[seed] = found
    return figures


def judge_all(claim: Claim, figures: Figures) -> list[Judged]:
    """Judge every comparison whose two arms have a seed in common."""

    def by_seed(arm: str, measure: str) -> dict[int, float]:
        return {seed: found["metrics"][measure] for seed, found in figures.get(arm, {}).items()}

    possible = [c for c in claim.compare if figures.get(c.better, {}).keys() & figures.get(c.worse, {}).keys()]
    return [
        judge(c.better, c.worse, c.measure, by_seed(c.better, c.measure), by_seed(c.worse, c.measure), len(possible))
        for c in possible
    ]


def write_claim(claim: Claim, scale: Scale, folder: Path) -> Path:
    """Judge what is there of `claim`, write it, and log it to MLflow; returns the page.

    Raises InputError where no cell has been measured.
    """
    figures = gather(claim, scale, folder)
    if not figures:
        raise InputError(
            f"{folder}: nothing of the claim {claim.claim} is measured there at the scale {scale.scale}; "
            f"run the same command without --table, or give the --folder that it ran with"
        )
    judged = judge_all(claim, figures)
    missing = [c for c in claim.compare if not any(_same(c, one) for one in judged)]
    verdict = overall(judged) if judged and not missing else "undecided"
    measures = [name for name in MEASURES if name == "top1" or any(c.measure == name for c in claim.compare)]
    table = {
        arm: {m: estimate([found["metrics"][m] for found in seeds.values()]) for m in measures}
        for arm, seeds in figures.items()
    }
    seconds = sum(sum(found["seconds"].values()) for seeds in figures.values() for found in seeds.values())
    facts = provenance()
    document = {
        "claim": claim.claim,
        "statement": claim.statement,
        "source": claim.source,
        "scale": scale.scale,
        "about": scale.about,
        "verdict": verdict,
        "comparisons": [{**asdict(one), "difference": _plain(one.difference)} for one in judged],
        "not_compared": [c.model_dump() for c in missing],
        "arms": {arm: {m: _plain(one) for m, one in row.items()} for arm, row in table.items()},
        "by_seed": {
            arm: {seed: {"key": f["key"], "seconds": f["seconds"], **f["metrics"]} for seed, f in seeds.items()}
            for arm, seeds in figures.items()
        },
        "seconds": round(seconds, 1),
        "provenance": facts,
    }
    path, page = folder / f"{claim.claim}.json", folder / f"{claim.claim}.html"
    path.write_text(json.dumps(document, indent=1, default=str) + "\n")
    told = [("cells, seconds", f"{sum(map(len, figures.values()))} cells, {seconds:.0f} s"), *facts_of(facts)]
    write_page(_page(claim, scale, verdict, table, judged, missing, told), page)
    _track(claim, scale, folder, judged, table, (path, page))
    return page


def _plain(one: Estimate) -> dict[str, Any]:
    """An estimate as JSON has it: a single seed has no interval."""
    return asdict(one) if one.n > 1 else {"mean": one.mean, "low": None, "high": None, "n": one.n}


def _between(one: dict[str, Any], form: str = "{:.3f}") -> str:
    return "one seed" if one["low"] is None else f"{form.format(one['low'])} to {form.format(one['high'])}"


def _same(comparison: Comparison, judged: Judged) -> bool:
    return (comparison.better, comparison.worse, comparison.measure) == (judged.better, judged.worse, judged.measure)


def _page(
    claim: Claim,
    scale: Scale,
    verdict: str,
    table: Mapping[str, Mapping[str, Estimate]],
    judged: list[Judged],
    missing: list[Comparison],
    facts: list[tuple[str, str]],
) -> Page:
    measures = list(next(iter(table.values()), {}))
    charts = [
        (
            MEASURES[m],
            interval_chart(f"{claim.claim} {m}", MEASURES[m], [_interval(a, row[m]) for a, row in table.items()]),
        )
        for m in measures
    ]
    differences = [_interval(f"{j.better} - {j.worse}, {j.measure}", j.difference) for j in judged]
    sections = [
        Section(
            "Comparisons",
            heads=("comparison", "measure", "difference", "95% interval", "seeds", "verdict"),
            rows=[
                (
                    f"{j.better} over {j.worse}",
                    MEASURES[j.measure],
                    *_cells(j.difference),
                    str(j.difference.n),
                    j.verdict,
                )
                for j in judged
            ],
            charts=[("Differences", interval_chart(f"{claim.claim} differences", "difference", differences, zero=True))]
            if differences
            else (),
            wide=True,
            note="Differences are taken seed by seed. " + " ".join(_absent(c) for c in missing),
        ),
        Section(
            "Arms",
            heads=("arm", "seeds", *(MEASURES[m] for m in measures)),
            rows=[
                (
                    arm,
                    str(row["top1"].n),
                    *(f"{one.mean:.3f} ({_between(_plain(one))})" for one in row.values()),
                )
                for arm, row in table.items()
            ],
            charts=charts,
            note="Means over seeds with 95% t intervals.",
        ),
    ]
    tiles = [("verdict", verdict, f"at the scale {scale.scale}"), ("seeds", str(len(scale.seeds)), scale.about)]
    return Page(claim.statement, f"{claim.source} · {scale.about}", tiles, sections, facts)


def _absent(comparison: Comparison) -> str:
    return f"{comparison.better} over {comparison.worse} was not compared: not run at this scale."


def _interval(name: str, one: Estimate) -> Interval:
    return Interval(name, one.mean, one.low, one.high) if one.n > 1 else Interval(name, one.mean, one.mean, one.mean)


def _cells(one: Estimate) -> tuple[str, str]:
    return f"{one.mean:+.3f}", _between(_plain(one), "{:+.3f}")


def _track(
    claim: Claim,
    scale: Scale,
    folder: Path,
    judged: list[Judged],
    table: Mapping[str, Mapping[str, Estimate]],
    files: tuple[Path, ...],
) -> None:
    cell = next(iter(cells_of(claim, scale, folder).values()))
    experiment = Experiment.model_validate({"name": f"{claim.claim}-{scale.scale}", **cell.experiment})
    given = experiment.tracking.uri or default_uri(folder / "cells" / "any")  # where the cells' own runs are
    tracked = experiment.model_copy(update={"tracking": TrackingConfig(uri=given, experiment="claims")})
    place = folder / "mlflow" / claim.claim
    place.mkdir(parents=True, exist_ok=True)
    tags = {"claim": claim.claim, "scale": scale.scale, **{f"{j.better} over {j.worse}": j.verdict for j in judged}}
    with Tracker(tracked, place, tags) as tracker:
        tracker.metrics(0, {f"{arm}.{m}": one.mean for arm, row in table.items() for m, one in row.items()})
        for file in files:
            tracker.artifact(file)


def as_text(path: Path) -> list[str]:
    """Return what the JSON of a claim says, in lines."""
    found = json.loads(path.read_text())
    lines = [f"{found['claim']}, scale {found['scale']}: {found['verdict']}", f"  {found['statement']}"]
    for arm, row in found["arms"].items():
        figures = "  ".join(f"{m} {one['mean']:.3f} ({_between(one)})" for m, one in row.items())
        lines.append(f"  {arm:20s} {figures}")
    for one in found["comparisons"]:
        gap = one["difference"]
        lines.append(
            f"  {one['better']} over {one['worse']}, {one['measure']}: {gap['mean']:+.3f} "
            f"({_between(gap, '{:+.3f}')}, {gap['n']} seeds): {one['verdict']}"
        )
    return lines
