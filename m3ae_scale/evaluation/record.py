"""What an evaluation leaves behind: result.json, page.html, and a run in MLflow beside the one that was trained."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3ae_scale.config import load_experiment
from m3ae_scale.engine.checkpoint.folder import find_checkpoint
from m3ae_scale.evaluation.encode import find_run
from m3ae_scale.reports.page import Page, Section, facts_of, write_page
from m3ae_scale.training.provenance import provenance
from m3ae_scale.training.tracking import RUN_ID_FILE, Tracker, default_uri


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated: a checkpoint of a run, and when that began."""

    run: Path
    checkpoint: Path
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def at(cls, path: str | Path) -> "Evaluated":
        """Find the checkpoint that `path`, a run folder or a checkpoint, means. Raises InputError."""
        return cls(find_run(path), find_checkpoint(Path(path)))

    def folder(self, verb: str, *parts: str) -> Path:
        """Return the folder that the results of `verb` go to, by what tells them apart."""
        return self.run / "evaluation" / "-".join((verb, *parts, self.checkpoint.name))


@dataclass(frozen=True)
class Outcome:
    """What was found, ready to be written."""

    verb: str
    title: str
    lead: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)  # into the JSON only
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  # metric -> one value an epoch, from 1
    tiles: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[Section] = ()


def write_outcome(outcome: Outcome, evaluated: Evaluated, folder: Path) -> Path:
    """Write `outcome` into `folder` and to MLflow; returns the page. Call it on one rank."""
    folder.mkdir(parents=True, exist_ok=True)
    facts = provenance()
    seconds = round(time.monotonic() - evaluated.started, 1)
    document = {
        "verb": outcome.verb,
        "checkpoint": str(evaluated.checkpoint),
        "settings": dict(outcome.settings),
        "metrics": dict(outcome.metrics),
        **outcome.details,
        "curves": {name: list(values) for name, values in outcome.curves.items()},
        "seconds": seconds,
        "provenance": facts,
    }
    result, page = folder / "result.json", folder / "page.html"
    result.write_text(json.dumps(document, indent=1, default=str) + "\n")
    told = [
        ("checkpoint", str(evaluated.checkpoint)),
        *((key.replace("_", " "), str(value)) for key, value in outcome.settings.items()),
        ("seconds", str(seconds)),
        *facts_of(facts),
    ]
    write_page(Page(outcome.title, outcome.lead, outcome.tiles, outcome.sections, told), page)
    _track(outcome, evaluated, folder, facts)
    return page


def _track(outcome: Outcome, evaluated: Evaluated, folder: Path, facts: Mapping[str, Any]) -> None:
    """Log an MLflow run of its own, below the one that was trained: that one stays as it ended."""
    experiment, _ = load_experiment(evaluated.run / "experiment.yaml")
    uri = experiment.tracking.uri or default_uri(evaluated.run)
    tracked = experiment.model_copy(
        update={"name": folder.name[:200], "tracking": experiment.tracking.model_copy(update={"uri": uri})}
    )
    parent = evaluated.run / RUN_ID_FILE
    tags = {"verb": outcome.verb, "checkpoint": str(evaluated.checkpoint), **facts}
    if parent.exists():
        tags["mlflow.parentRunId"] = parent.read_text().strip()
    with Tracker(tracked, folder, tags) as tracker:
        for name, values in outcome.curves.items():
            for epoch, value in enumerate(values, start=1):
                tracker.metrics(epoch, {name: value})
        tracker.metrics(0, {name: float(value) for name, value in outcome.metrics.items()})
        for file in ("result.json", "page.html"):
            tracker.artifact(folder / file)
