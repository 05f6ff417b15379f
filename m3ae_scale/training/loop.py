"""The training loop: batches in, steps out, and at its intervals a look at the run and a checkpoint."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from m3ae_scale.batch import Batch
from m3ae_scale.config import Experiment
from m3ae_scale.data import ValidationData
from m3ae_scale.engine.build import Built, peak_lr
from m3ae_scale.engine.schedule import warmup_cosine
from m3ae_scale.engine.step import set_lr, step
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.training.lifecycle import StopRequest
from m3ae_scale.training.meters import Meters, progress_line
from m3ae_scale.training.metrics_file import append_metrics
from m3ae_scale.training.pictures import sheet_path
from m3ae_scale.training.tracking import Tracker
from m3ae_scale.training.validate import draw_pictures, validate


@dataclass
class Run:
    """Everything that a training run is made of, once it stands."""

    experiment: Experiment
    folder: Path
    groups: Groups
    built: Built
    batches: Iterator[Batch]  # micro-batches, `accumulation` of them a step
    accumulation: int
    bad_samples: Callable[[], Mapping[str, int]]  # by source, those that this rank has met
    validation: ValidationData
    piece: Callable[[int], str]  # word id -> word piece
    meters: Meters
    tracker: Tracker | None  # on the first rank
    save: Callable[[int], None]  # writes a checkpoint of the given step
    steps: int  # to train in all
    warmup: int
    done: int = 0  # optimizer steps taken
    stop: StopRequest | None = None


def train(run: Run) -> bool:
    """Train from `run.done` to `run.steps`; returns False when asked to stop before the end."""
    every = run.experiment.run
    if run.done == 0:
        _look(run, pictures=every.pictures_every > 0, validation=every.validate_every > 0)
    while run.done < run.steps:
        lr = _train_step(run)
        run.done += 1
        last = run.done == run.steps
        if last or run.done % every.log_every == 0:
            _report(run, lr)
        _look(
            run,
            pictures=_due(run.done, every.pictures_every, last),
            validation=_due(run.done, every.validate_every, last),
        )
        stopping = run.stop is not None and run.stop.agreed() and not last
        if stopping or _due(run.done, every.checkpoint_every, last):
            with run.meters.paused():
                run.save(run.done)
        if stopping:
            return False
    return True


def _train_step(run: Run) -> float:
    """Take one optimizer step over the global batch; returns its learning rate."""
    experiment, engine = run.experiment, run.built.engine
    schedule = experiment.train
    peak = peak_lr(experiment)
    lr = warmup_cosine(run.done, peak, run.warmup, run.steps, peak * schedule.final_lr / experiment.optimizer.lr)
    set_lr(run.built, lr)
    # The engine averages over micro-batches and replicas; what is wanted is the sum over samples / global batch.
    scale = run.groups.topology.data * run.accumulation / experiment.batch.global_
    gradient_norm = None
    for _ in range(run.accumulation):
        batch = next(run.batches)
        losses = engine(batch)
        each = objective(losses, batch, experiment.loss)
        engine.backward(each.sum() * scale)
        run.meters.add(losses, each, batch)
        gradient_norm = step(run.built, run.groups)
    run.meters.step(gradient_norm)
    return lr


def _report(run: Run, lr: float) -> None:
    """Print, write down and track what was measured since the last report."""
    values = run.meters.report(run.steps - run.done, lr)
    bad = _count_bad_samples(run)
    if run.groups.first:
        said = ", ".join(f"{name} {count}" for name, count in bad.items() if count)
        print(progress_line(run.done, run.steps, values) + (f"  bad samples: {said}" if said else ""), flush=True)
    _record(run, values | {f"bad_samples_{name}": float(count) for name, count in bad.items()})


def _count_bad_samples(run: Run) -> dict[str, int]:
    """By source, the samples that all ranks together could not use so far."""
    names, mine = [source.name for source in run.experiment.data.sources], run.bad_samples()
    counts = torch.tensor([mine.get(name, 0) for name in names], dtype=torch.float64, device=run.groups.device)
    return dict(zip(names, map(int, run.groups.sum(counts).tolist()), strict=True))


def _look(run: Run, *, pictures: bool, validation: bool) -> None:
    """Validate, or draw what the model fills in."""
    if not len(run.validation) or not (pictures or validation):
        return
    with run.meters.paused():
        if validation:
            values = validate(run.experiment, run.built, run.groups, run.validation)
            if run.groups.first and "validation_loss" in values:
                parts = "  ".join(f"{k.removeprefix('validation_')} {v:.4f}" for k, v in values.items())
                print(f"validation at step {run.done}: {parts}", flush=True)
            _record(run, values)
        if pictures:
            path = sheet_path(run.folder, run.done)
            draw_pictures(run.experiment, run.built, run.groups, run.validation, run.piece, path)
            if run.tracker is not None:
                run.tracker.artifact(path, "pictures")


def _record(run: Run, values: dict[str, float]) -> None:
    if run.groups.first:
        append_metrics(run.folder / "metrics.jsonl", run.done, values)
    if run.tracker is not None:
        run.tracker.metrics(run.done, values)


def _due(done: int, every: int, last: bool) -> bool:
    return every > 0 and (last or done % every == 0)
