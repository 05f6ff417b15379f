"""The probes of frozen features, each from a checkpoint and labelled sets to a written outcome."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from m3ae_scale.config import load_experiment
from m3ae_scale.evaluation.detect import detection, familiarity
from m3ae_scale.evaluation.encode import load_encoder
from m3ae_scale.evaluation.features import Extractor, FeatureSet, Pool, identify, joined, training_and_test
from m3ae_scale.evaluation.labelled import Input, open_labelled, open_unlabelled
from m3ae_scale.evaluation.linear import LinearHead, LinearRecipe, train_head
from m3ae_scale.evaluation.neighbours import vote
from m3ae_scale.evaluation.record import Evaluated, Outcome, write_outcome
from m3ae_scale.evaluation.scores import accuracies
from m3ae_scale.evaluation.tables import accuracy_tiles, class_details, class_sections, percent
from m3ae_scale.reports.chart import Series, line_chart, scatter_chart
from m3ae_scale.reports.page import Section


@dataclass(frozen=True)
class Probe:
    """What a probe is given, whichever it is."""

    path: str  # a run folder or a checkpoint
    train: str  # a labelled set
    taken: Input = "image"
    pool: Pool = "cls"
    label: str | None = None

    @contextmanager
    def opened(self) -> "Iterator[tuple[Extractor, Evaluated]]":
        """Load the encoder on every rank of this launch."""
        evaluated = Evaluated.at(self.path)
        with joined() as groups:
            encoder = load_encoder(evaluated.checkpoint, str(groups.device))
            folder = evaluated.run / "features"
            yield Extractor(encoder, identify(evaluated.checkpoint), folder, groups, self.pool), evaluated


def linear_probe(probe: Probe, test: str, recipe: LinearRecipe) -> Path | None:
    """Train a linear layer on the features of `probe.train`, score it on `test`; returns the page on the first rank."""
    with probe.opened() as (extractor, evaluated):
        trained_on, tested_on = training_and_test(extractor, probe.train, test, probe.taken, probe.label, evaluated.run)
        if not extractor.groups.first:
            return None
        device = extractor.groups.device
        losses: list[float] = []
        top1: list[float] = []

        def each_epoch(epoch: int, loss: float, head: LinearHead) -> None:
            losses.append(loss)
            top1.append(accuracies(head.logits(tested_on.features), tested_on.labels)["top1"])

        head = train_head(trained_on, recipe, device, each_epoch)
        scores = head.logits(tested_on.features)
        metrics = accuracies(scores, tested_on.labels)
        metrics["train_top1"] = accuracies(head.logits(trained_on.features), trained_on.labels)["top1"]
        epochs = range(1, recipe.epochs + 1)
        charts = [
            ("Training loss", line_chart("Training loss", "epoch", [Series("training", epochs, losses)])),
            ("Test accuracy", line_chart("Test accuracy", "epoch", [Series("test", epochs, top1)])),
        ]
        outcome = Outcome(
            verb="linear-probe",
            title=f"Linear probe on {trained_on.name}",
            lead=_lead(probe, evaluated, trained_on, tested_on),
            settings=_settings(probe, test) | asdict(recipe) | {"batch": recipe.samples},
            metrics=metrics,
            details=class_details(scores, tested_on.labels, tested_on.classes),
            curves={"loss": losses, "top1_by_epoch": top1},
            tiles=[
                *accuracy_tiles(metrics, len(tested_on.classes)),
                ("training accuracy", percent(metrics["train_top1"]), "of its own set"),
            ],
            sections=[
                Section("Curves", charts=charts),
                *class_sections(scores, tested_on.labels, tested_on.name, tested_on.classes),
            ],
        )
        return write_outcome(outcome, evaluated, _folder(probe, evaluated, "linear-probe", trained_on))


def knn(probe: Probe, test: str, k: int, temperature: float) -> Path | None:
    """Classify `test` by its nearest neighbours in `probe.train`; returns the page on the first rank."""
    with probe.opened() as (extractor, evaluated):
        trained_on, tested_on = training_and_test(extractor, probe.train, test, probe.taken, probe.label, evaluated.run)
        if not extractor.groups.first:
            return None
        votes = vote(trained_on, tested_on.features, k, temperature, extractor.groups.device)
        metrics = accuracies(votes, tested_on.labels)
        outcome = Outcome(
            verb="knn",
            title=f"Nearest neighbours on {trained_on.name}",
            lead=_lead(probe, evaluated, trained_on, tested_on),
            settings=_settings(probe, test) | {"k": k, "temperature": temperature},
            metrics=metrics,
            details=class_details(votes, tested_on.labels, tested_on.classes),
            tiles=accuracy_tiles(metrics, len(tested_on.classes)),
            sections=class_sections(votes, tested_on.labels, tested_on.name, tested_on.classes),
        )
        return write_outcome(outcome, evaluated, _folder(probe, evaluated, "knn", trained_on))


def out_of_distribution(
    probe: Probe, test: str, shifted: str | None, unknown: str | None, recipe: LinearRecipe
) -> Path | None:
    """Score a linear probe on `test` and on `shifted` (the same classes), and tell `unknown` from `test`.

    unknown: samples of other classes, with labels or without; None: those of `shifted` are to be told apart.
    Returns the page on the first rank.
    """
    with probe.opened() as (extractor, evaluated):
        trained_on, tested_on = training_and_test(extractor, probe.train, test, probe.taken, probe.label, evaluated.run)
        data = load_experiment(evaluated.run / "experiment.yaml")[0].data
        moved = strange = None
        if shifted is not None:
            listed = open_labelled(shifted, probe.taken, data, probe.label).of_classes(trained_on.classes)
            moved = extractor.extract(listed, probe.taken)
        if unknown is not None:
            strange = extractor.extract(open_unlabelled(unknown, probe.taken, data), probe.taken)
        if not extractor.groups.first:
            return None
        head = train_head(trained_on, recipe, extractor.groups.device)
        metrics, rows = ood_metrics(trained_on, tested_on, moved, strange, head)
        outside = strange or moved
        sections = [
            Section(
                "Detection",
                f"How well each score tells {outside.name if outside else ''} from {tested_on.name}.",
                heads=("score", "AUROC", "AUPR", "FPR at 95% TPR"),
                rows=[
                    (name.replace("_", " "), *(f"{values[m]:.3f}" for m in _DETECTED)) for name, values in rows.items()
                ],
                note="AUROC 0.5 and an FPR of 0.95 are chance; AUPR's chance is the share of samples from outside.",
            )
        ]
        tiles = accuracy_tiles(metrics, len(tested_on.classes))
        if moved is not None:
            tiles += [
                ("shifted accuracy", percent(metrics["shifted_top1"]), f"on {moved.name}"),
                ("retained", percent(metrics["retained"]), "of what is above chance"),
            ]
            sections += class_sections(head.logits(moved.features), moved.labels, moved.name, moved.classes)
        outcome = Outcome(
            verb="ood",
            title=f"Out of distribution: {trained_on.name}",
            lead=_lead(probe, evaluated, trained_on, tested_on),
            settings=_settings(probe, test) | {"shifted": shifted, "unknown": unknown} | asdict(recipe),
            metrics=metrics,
            tiles=tiles,
            sections=sections,
        )
        return write_outcome(outcome, evaluated, _folder(probe, evaluated, "ood", trained_on))


_DETECTED = ("auroc", "aupr", "fpr95")


def ood_metrics(
    train: FeatureSet, test: FeatureSet, shifted: FeatureSet | None, unknown: FeatureSet | None, head: LinearHead
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return all figures of an out-of-distribution probe, and those of detection by score.

    retained: the accuracy above chance on `shifted`, as a share of that on `test`.
    """
    metrics = accuracies(head.logits(test.features), test.labels)
    if shifted is not None:
        moved = accuracies(head.logits(shifted.features), shifted.labels)
        metrics |= {f"shifted_{name}": value for name, value in moved.items()}
        chance = 1 / len(train.classes)
        metrics["retained"] = (moved["top1"] - chance) / max(metrics["top1"] - chance, 1e-9)
    outside = unknown or shifted
    rows: dict[str, dict[str, float]] = {}
    if outside is not None:
        inside, out = (familiarity(train, head, data.features) for data in (test, outside))
        rows = {name: detection(inside[name], out[name]) for name in inside}
        metrics |= {f"{name}_{m}": value for name, found in rows.items() for m, value in found.items()}
    return metrics, rows


def embed(probe: Probe, most: int, seed: int, perplexity: float) -> Path | None:
    """Lay the features of at most `most` samples out in the plane; returns the page on the first rank."""
    with probe.opened() as (extractor, evaluated):
        data = load_experiment(evaluated.run / "experiment.yaml")[0].data
        listed = open_labelled(probe.train, probe.taken, data, probe.label).some(most)
        found = extractor.extract(listed, probe.taken)
        if not extractor.groups.first:
            return None
        from m3ae_scale.evaluation.plane import layouts, separation

        charts, metrics, points = [], {}, {}
        for name, places in layouts(found.features, seed, perplexity).items():
            charts.append((name, scatter_chart(f"{name} of {found.name}", places, found.labels.numpy(), found.classes)))
            metrics[f"{name.lower().replace('-', '')}_neighbours_alike"] = separation(places, found.labels)
            points[name] = places.round(3).tolist()
        outcome = Outcome(
            verb="embed",
            title=f"Features of {found.name} in the plane",
            lead=_lead(probe, evaluated, found),
            settings=_settings(probe) | {"most": most, "seed": seed, "perplexity": perplexity},
            metrics=metrics,
            details={"classes": found.classes, "labels": found.labels.tolist(), "points": points},
            tiles=[
                (name.replace("_", " "), percent(value), f"chance {percent(_alike_by_chance(found))}")
                for name, value in metrics.items()
            ],
            sections=[
                Section(
                    "Layouts",
                    charts=charts,
                    wide=True,
                    note="Each dot is a sample, its colour the class, which the layout does not know. Distances "
                    "between far groups mean little. Neighbours alike: the share of a dot's ten nearest of its class.",
                )
            ],
        )
        return write_outcome(outcome, evaluated, _folder(probe, evaluated, "embed", found))


def _alike_by_chance(data: FeatureSet) -> float:
    shares = torch.bincount(data.labels).double() / len(data)
    return float((shares**2).sum())


def _folder(probe: Probe, evaluated: Evaluated, verb: str, data: FeatureSet) -> Path:
    return evaluated.folder(verb, data.name, probe.taken, probe.pool)


def _settings(probe: Probe, test: str | None = None) -> dict[str, object]:
    given = {"train": probe.train, "test": test, "input": probe.taken, "pool": probe.pool, "label": probe.label}
    return {name: value for name, value in given.items() if value is not None}


def _lead(probe: Probe, evaluated: Evaluated, *sets: FeatureSet) -> str:
    sizes = ", ".join(f"{len(data):,} samples of {data.name}" for data in sets)
    taken = {"image": "images", "text": "texts", "both": "images with their texts"}[probe.taken]
    return f"{evaluated.run.name} at {evaluated.checkpoint.name} · {taken}, {probe.pool} features · {sizes}"
