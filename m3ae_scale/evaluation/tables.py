"""Accuracies as a page shows them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from m3ae_scale.evaluation.scores import class_rows, confusion
from m3ae_scale.reports.page import Section

Tile = tuple[str, str, str]


def percent(share: float) -> str:
    """Write a share in percent."""
    return f"{share:.1%}"


def accuracy_tiles(metrics: Mapping[str, float], classes: int) -> list[Tile]:
    """Return the figures of `accuracies`, beside chance."""
    interval = f"95%: {percent(metrics['top1_low'])} to {percent(metrics['top1_high'])}"
    tiles = [("accuracy", percent(metrics["top1"]), interval)]
    if "top5" in metrics:
        tiles.append(("top 5", percent(metrics["top5"]), "right among five"))
    return [*tiles, ("chance", percent(1 / classes), f"{classes} classes")]


def class_details(scores: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return what the JSON of an evaluation says of each class. scores: (n, classes); labels: (n,)."""
    rows = class_rows(scores, labels, classes, len(classes))
    return {"classes": list(classes), "per_class": {name: share for name, _, share in rows}}


def class_sections(scores: Tensor, labels: Tensor, name: str, classes: Sequence[str]) -> list[Section]:
    """Return the worst classes and, of twenty or fewer, what is taken for what. scores: (n, classes); labels: (n,)."""
    worst = class_rows(scores, labels, classes)
    sections = [
        Section(
            f"By class, on {name}",
            heads=("class", "samples", "right"),
            rows=[(one, str(count), percent(share)) for one, count, share in worst],
            note="" if len(worst) == len(classes) else f"The {len(worst)} worst of {len(classes)}.",
        )
    ]
    if len(classes) <= 20:
        rows = [(one, *map(str, row)) for one, row in zip(classes, confusion(scores, labels), strict=True)]
        sections.append(Section("What is taken for what", heads=("", *classes), rows=rows))
    return sections
