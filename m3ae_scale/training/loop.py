"""The training loop: batches in, steps out, and at its intervals a look at the run and a checkpoint."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from m3ae_scale.batch import Batch
from m3ae_scale.config import Experiment
from m3ae_scale.data import ValidationData
from m3ae_scale.engine.build import Built, peak_lr
from m3ae_scale.engine.schedule import warmup_cosine
from m3ae_scale.engine.step import set_lr, step
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.training.feed import Feed
from m3ae_scale.training.guard import Guard
from m3ae_scale.training.lifecycle import StopRequest
from m3ae_scale.training.meters import Meters, progress_line
from m3ae_scale.training.metrics_file import append_metrics
from m3ae_scale.training.pace import Pace
from m3ae_scale.training.pictures import sheet_path
from m3ae_scale.training.saver import Saver
from m3ae_scale.training.validate import draw_pictures, validate
from m3ae_scale.training.watch import Watch

if TYPE_CHECKING:
    from m3ae_scale.training.tracking import Tracker


@dataclass
class Run:
    """Everything that a training run is made of, once it stands."""

    experiment: Experiment
    folder: Path
    groups: Groups
    built: Built
    feed: Feed  # micro-batches, `accumulation` of them a step
    accumulation: int
    validation: ValidationData
    piece: Callable[[int], str]  # word id -> word piece
    meters: Meters
    tracker: "Tracker | None"  # on the first rank
    saver: Saver
    rewind: Callable[[], int | None]  # goes back to the last good checkpoint, and returns its step
    guard: Guard
    watch: Watch
    pace: Pace
    steps: int  # to train in all
    warmup: int
    done: int = 0  # global batches that were trained on, or passed over
    stop: StopRequest | None = None


def train(run: Run) -> bool:
    """Train from `run.done` to `run.steps`; returns False when asked to stop before the end."""
    every = run.experiment.run
    if run.done == 0:
        _look(run, pictures=every.pictures_every > 0, validation=every.validate_every > 0)
    lr = 0.0
    while run.done < run.steps:
        if run.guard.leaves_out(run.done):
            for _ in range(run.accumulation):
                _next_batch(run)
        else:
            lr, trouble = _train_step(run)
            if trouble is not None and _handle(run, trouble):
                continue  # from an earlier step
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
            _at(run, "checkpoint")
            with run.meters.paused():
                run.saver.save(run.done, wait=stopping or last)
        if stopping:
            return False
    return True


def _train_step(run: Run) -> tuple[float, str | None]:
    """Train on the next global batch; returns the learning rate, and why the step was not applied if it was not."""
    experiment, engine = run.experiment, run.built.engine
    schedule = experiment.train
    peak = peak_lr(experiment)
    lr = warmup_cosine(run.done, peak, run.warmup, run.steps, peak * schedule.final_lr / experiment.optimizer.lr)
    set_lr(run.built, lr)
    # The engine averages over micro-batches and replicas; what is wanted is the sum over samples / global batch.
    scale = run.groups.topology.data * run.accumulation / experiment.batch.global_
    for number in reversed(range(run.accumulation)):
        batch = _next_batch(run)
        _at(run, "forward pass")
        losses = engine(batch)
        each = objective(losses, batch, experiment.loss)
        run.guard.see(losses, each, batch, last=number == 0)
        _at(run, "backward pass")
        engine.backward(each.sum() * scale)
        run.meters.add(losses, each, batch)
        if number:
            step(run.built, run.groups)
    _at(run, "optimizer step")
    objection = run.guard.objection()
    stepped = step(run.built, run.groups, wanted=objection is None)
    run.meters.step(stepped.norm, stepped.applied)
    if stepped.applied:
        run.guard.applied()
        return lr, None
    return lr, objection or "the gradient is not finite"


def _next_batch(run: Run) -> Batch:
    _at(run, "waiting for data")
    with run.pace.waiting():
        return next(run.feed)


def _at(run: Run, place: str) -> None:
    run.watch.at(f"step {run.done + 1}, {place}")


def _handle(run: Run, reason: str) -> bool:
    """Write down a step that was not applied, and do what the guard says; returns True where the run went back."""
    action = run.guard.refuse(run.done, reason)
    _record(run, {"guard_refused_steps": float(run.guard.refused)}, run.done + 1)
    if run.tracker is not None:
        run.tracker.artifact(run.guard.samples_file(run.done), "guard")
        run.tracker.artifact(run.guard.events_file, "guard")
    if action != "rollback":
        return False
    _at(run, "rollback")
    with run.meters.paused():
        back = run.rewind()
    if back is None:
        return False  # nothing to go back to yet
    run.done = back
    return True


def _report(run: Run, lr: float) -> None:
    """Print, write down and track what was measured since the last report."""
    _at(run, "report")
    values = run.meters.report(run.steps - run.done, lr)
    bad = _count_bad_samples(run)
    run.saver.settle()
    pace, slow = run.pace.report(run.done, values.get("step_seconds", 0.0))
    if run.groups.first:
        said = ", ".join(f"{name} {count}" for name, count in bad.items() if count)
        print(progress_line(run.done, run.steps, values) + (f"  bad samples: {said}" if said else ""), flush=True)
        for line in slow:
            print(line, flush=True)
    _record(run, values | pace | {f"bad_samples_{name}": float(count) for name, count in bad.items()})


def _count_bad_samples(run: Run) -> dict[str, int]:
    """By source, the samples that all ranks together could not use so far."""
    names, mine = [source.name for source in run.experiment.data.sources], run.feed.bad_samples
    counts = torch.tensor([mine.get(name, 0) for name in names], dtype=torch.float64, device=run.groups.device)
    return dict(zip(names, map(int, run.groups.sum(counts).tolist()), strict=True))


def _look(run: Run, *, pictures: bool, validation: bool) -> None:
    """Validate, or draw what the model fills in."""
    if not len(run.validation) or not (pictures or validation):
        return
    with run.meters.paused():
        if validation:
            values = validate(run.experiment, run.built, run.groups, run.validation, lambda: _at(run, "validation"))
            if run.groups.first and "validation_loss" in values:
                parts = "  ".join(f"{k.removeprefix('validation_')} {v:.4f}" for k, v in values.items())
                print(f"validation at step {run.done}: {parts}", flush=True)
            _record(run, values)
        if pictures:
            _at(run, "pictures")
            path = sheet_path(run.folder, run.done)
            draw_pictures(run.experiment, run.built, run.groups, run.validation, run.piece, path)
            if run.tracker is not None:
                run.tracker.artifact(path, "pictures")


def _record(run: Run, values: dict[str, float], step: int | None = None) -> None:
    """Write down and track `values` at `step`, by default the last one done."""
    step = run.done if step is None else step
    if run.groups.first:
        append_metrics(run.folder / "metrics.jsonl", step, values)
    if run.tracker is not None:
        run.tracker.metrics(step, values)


def _due(done: int, every: int, last: bool) -> bool:
    return every > 0 and (last or done % every == 0)
