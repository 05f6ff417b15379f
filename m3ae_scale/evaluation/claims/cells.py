"""A cell: one arm at one seed, pretrained and probed; its figures are kept, so that a second call goes on.

    FOLDER/data/<name>/          what the scale has written for it
    FOLDER/cells/<key>.yaml      the experiment of a cell, as `m3ae-scale pretrain` takes it
    FOLDER/cells/<key>/          its run folder, and cell.json once it is measured

The key is a hash of all that the cell depends on: claims that ask for the same cell share it.
"""

import copy
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from m3ae_scale.config import Experiment, Origins, load_experiment
from m3ae_scale.config.load import as_yaml
from m3ae_scale.data.synthesize import Synthesis, synthesize
from m3ae_scale.engine.checkpoint.folder import latest_checkpoint
from m3ae_scale.errors import InputError
from m3ae_scale.evaluation.claims.files import Arm, Scale
from m3ae_scale.evaluation.classifier import Classifier, FinetuneRecipe, train_classifier
from m3ae_scale.evaluation.encode import PretrainedEncoder, build_encoder, load_encoder
from m3ae_scale.evaluation.features import Extractor, FeatureSet, identify, joined
from m3ae_scale.evaluation.labelled import open_labelled, open_unlabelled
from m3ae_scale.evaluation.linear import LinearRecipe, train_head
from m3ae_scale.evaluation.neighbours import vote
from m3ae_scale.evaluation.probes import ood_metrics
from m3ae_scale.evaluation.scores import accuracies
from m3ae_scale.model.init import draw
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.training.pretrain import pretrain
from m3ae_scale.training.provenance import provenance

PRETRAINED = "run.html"  # what `m3ae-scale pretrain` leaves in a run folder when it is through
_DONE = "cell.json"


@dataclass(frozen=True)
class Cell:
    """One arm at one seed."""

    scale: Scale
    folder: Path  # of the scale: data/ and cells/
    arm: Arm
    seed: int
    experiment: Mapping[str, Any]  # complete, but for its name and its folder

    @property
    def key(self) -> str:
        """A hash of all that the figures depend on."""
        scale = self.scale.model_dump(mode="json", exclude={"about", "seeds", "experiment"})
        what = json.dumps([scale, self.arm.supervised, self.experiment], sort_keys=True)
        return hashlib.blake2b(what.encode(), digest_size=6).hexdigest()

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.folder / "cells" / self.key

    @property
    def path(self) -> Path:
        """Its experiment."""
        return self.folder / "cells" / f"{self.key}.yaml"

    def figures(self) -> dict[str, Any] | None:
        """Return what was measured; None: nothing yet."""
        file = self.run / _DONE
        return json.loads(file.read_text()) if file.exists() else None

    def pretrained(self) -> bool:
        """Tell whether all that is left is to measure it."""
        return self.arm.supervised or (self.run / PRETRAINED).exists()

    def write(self) -> tuple[Experiment, Origins]:
        """Write its experiment and read it back. Raises InputError for one that is not valid."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        complete = {"name": self.key, **self.experiment}
        complete["run"] = {**complete.get("run", {}), "folder": str(self.path.parent)}
        self.path.write_text(as_yaml(complete), encoding="utf-8")
        return load_experiment(self.path)


def make_cell(scale: Scale, folder: Path, arm: Arm, seed: int) -> Cell:
    """Return the cell of `arm` at `seed`: the scale's experiment with what the arm changes."""
    values = copy.deepcopy(scale.experiment)
    for key, value in {**arm.set, **arm.at.get(scale.scale, {})}.items():
        *parents, last = key.split(".")
        node: Any = values
        for parent in parents:
            node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
        node[int(last) if isinstance(node, list) else last] = value
    values["seed"] = seed
    return Cell(scale, folder, arm, seed, _placed(values, folder))


def write_data(scale: Scale, folder: Path, say: Callable[[str], object]) -> None:
    """Write the scenes of `scale`; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "data.lock"):  # another process may be at it, for another claim
        _write_data(scale, folder, say)


def _write_data(scale: Scale, folder: Path, say: Callable[[str], object]) -> None:
    for name, settings in scale.data.items():
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
        }
        say(f"data    {folder / 'data' / name}")
        synthesize(folder / "data" / name, Synthesis(**values), processes=1)


def run_cell(cell: Cell) -> dict[str, Any]:
    """Pretrain `cell` where that is left to do, measure it, and keep what was found; what it prints goes to a log.

    Done in a fork of this process, as DeepSpeed starts once in a process; what is imported need not be again.
    Raises InputError for what the cell's experiment or its data have wrong, else SystemExit with the code of a cell
    that failed, or that was asked to stop: a second call goes on.
    """
    context = multiprocessing.get_context("fork")
    mistakes, tell = context.Pipe(duplex=False)
    child = context.Process(target=_run, args=(cell, tell))
    child.start()
    child.join()
    if mistakes.poll():
        raise InputError(mistakes.recv())
    found = cell.figures()
    if found is None:
        raise SystemExit(child.exitcode if child.exitcode and child.exitcode > 0 else 1)
    return found


def _run(cell: Cell, mistakes: Connection) -> None:
    try:
        _pretrain_and_measure(cell)
    except InputError as error:
        mistakes.send(str(error))


def _pretrain_and_measure(cell: Cell) -> None:
    experiment, origins = cell.write()
    cell.run.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with (cell.run / "log.txt").open("a") as log, redirect_stdout(log):
        if not cell.pretrained():
            pretrain(experiment, origins, cell.path, resume=(cell.run / "metrics.jsonl").exists())
            (cell.run / PRETRAINED).touch()
        pretrained = time.monotonic()
        with joined() as groups:
            metrics = _measure(cell, experiment, groups)
    found = {
        "key": cell.key,
        "seed": cell.seed,
        "metrics": metrics,
        "seconds": {"train": round(pretrained - began, 1), "measure": round(time.monotonic() - pretrained, 1)},
        "provenance": provenance(),
    }
    aside = cell.run / f"{_DONE}.partial"
    aside.write_text(json.dumps(found, indent=1, default=str) + "\n")
    aside.replace(cell.run / _DONE)


def _measure(cell: Cell, experiment: Experiment, groups: Groups) -> dict[str, float]:
    """Probe the features of the cell's encoder."""
    device = str(groups.device)
    if cell.arm.supervised:
        encoder, name = _supervised(cell, experiment, groups), cell.key
    else:
        checkpoint = latest_checkpoint(cell.run)
        assert checkpoint is not None, f"{cell.run}: pretrained, but without a checkpoint"
        encoder, name = load_encoder(checkpoint, device), identify(checkpoint)
    probe = cell.scale.probe.model_copy(update=_placed(cell.scale.probe.model_dump(), cell.folder))
    extractor = Extractor(encoder, name, cell.run / "features", groups, probe.pool)  # type: ignore[arg-type]

    def features(place: str, classes: tuple[str, ...] | None = None) -> FeatureSet:
        listed = open_labelled(place, "image", experiment.data, probe.label)
        return extractor.extract(listed.of_classes(classes) if classes else listed, "image")

    train = features(probe.train)
    test = features(probe.test, train.classes)
    shifted = features(probe.shifted, train.classes) if probe.shifted else None
    unknown = None
    if probe.unknown:
        unknown = extractor.extract(open_unlabelled(probe.unknown, "image", experiment.data), "image")
    head = train_head(train, LinearRecipe(**{"seed": cell.seed, **probe.linear}), device)
    metrics, _ = ood_metrics(train, test, shifted, unknown, head)
    metrics["knn_top1"] = accuracies(vote(train, test.features), test.labels)["top1"]
    return metrics


def _supervised(cell: Cell, experiment: Experiment, groups: Groups) -> PretrainedEncoder:
    """Train the same encoder from its initial values on the labels of the images that the others saw."""
    encoder = build_encoder(experiment, Path(experiment.data.tokenizer), str(groups.device))
    with torch.no_grad():
        for name, parameter in encoder.encoder.named_parameters():
            parameter.copy_(draw(f"encoder.{name}", parameter.shape, cell.seed))
    place = _placed(cell.scale.supervised_on, cell.folder)
    data = open_labelled(place, "image", experiment.data, cell.scale.probe.label)
    recipe = FinetuneRecipe(**{"seed": cell.seed, "pool": cell.scale.probe.pool, **cell.scale.supervised})
    losses: list[float] = []
    model = Classifier(encoder, len(data.classes), recipe)
    train_classifier(model, data, recipe, groups, cell.run / "state.pt", lambda epoch, loss: losses.append(loss))
    (cell.run / "losses.json").write_text(json.dumps(losses) + "\n")
    return model.encoder.eval()


def _placed(values: Any, folder: Path) -> Any:
    """Write the folder of the data wherever "{data}" stands."""
    if isinstance(values, str):
        return values.replace("{data}", str(folder / "data"))
    if isinstance(values, list):
        return [_placed(value, folder) for value in values]
    if isinstance(values, Mapping):
        return {key: _placed(value, folder) for key, value in values.items()}
    return values
