"""A training run from its parts: place, data, engine, checkpoint, record; then the loop."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from m3ae_scale.config import Experiment, Origins, save_experiment
from m3ae_scale.data import TrainingData, open_training, open_validation, preflight, tokens_per_sample
from m3ae_scale.data.tokenizer import load_tokenizer
from m3ae_scale.engine.build import build
from m3ae_scale.engine.checkpoint import load_latest
from m3ae_scale.engine.deepspeed_config import Resolved, resolve
from m3ae_scale.errors import EXIT_MISTAKE, EXIT_STOPPED, InputError
from m3ae_scale.kernels.peak import peak_flops
from m3ae_scale.model.flops import batch_flops
from m3ae_scale.parallel.groups import Groups, close_groups, open_groups
from m3ae_scale.parallel.launch import Ranks, find_ranks
from m3ae_scale.parallel.topology import Topology
from m3ae_scale.training.feed import Feed
from m3ae_scale.training.guard import Guard, condemned_steps
from m3ae_scale.training.initial import initial_values
from m3ae_scale.training.lifecycle import StopRequest
from m3ae_scale.training.loop import Run, train
from m3ae_scale.training.meters import Meters, short
from m3ae_scale.training.metrics_file import mark_resume, trained_seconds
from m3ae_scale.training.pace import Pace
from m3ae_scale.training.provenance import provenance
from m3ae_scale.training.saver import Saver
from m3ae_scale.training.watch import Watch

if TYPE_CHECKING:
    from m3ae_scale.training.tracking import Tracker

T = TypeVar("T")


def pretrain(experiment: Experiment, origins: Origins, path: Path, resume: bool = False) -> Path | None:
    """Train `experiment` (read from `path`) as the rank that the environment says.

    resume: go on from the last good checkpoint of the run folder; without one, begin.
    Returns the run folder on the first rank of a run that finished, else None.
    Raises InputError for what the user can mend, and SystemExit(EXIT_STOPPED) on every rank of a run that was asked
    to stop and has saved.
    """
    ranks = find_ranks(os.environ)
    Topology(ranks.world, experiment.parallel.tensor)  # a mistake here shows before groups are opened
    groups = open_groups(ranks, experiment.parallel.tensor)
    try:
        with ExitStack() as at_the_end:
            run = prepare(experiment, origins, path, groups, ranks, resume, at_the_end)
            finished = train(run)
            if groups.first and not finished:
                print(f"stopped at step {run.done}, checkpoint written; go on with --resume", flush=True)
                if run.tracker is not None:
                    run.tracker.close("KILLED")
        if not finished:
            raise SystemExit(EXIT_STOPPED)
        return run.folder if groups.first else None
    finally:
        close_groups()


def prepare(
    experiment: Experiment,
    origins: Origins,
    path: Path,
    groups: Groups,
    ranks: Ranks,
    resume: bool,
    at_the_end: ExitStack,
) -> Run:
    """Put the parts of a run together; `at_the_end` closes what needs closing."""
    folder = Path(experiment.run.folder) / experiment.name
    told_by_first(groups, lambda: _open_folder(experiment, folder, resume))
    average = told_by_first(groups, lambda: tokens_per_sample(experiment) if experiment.batch.micro_tokens else None)
    resolved = resolve(experiment, origins, groups.topology, path.parent, average)
    tokenizer = load_tokenizer(experiment.data.tokenizer)

    resumed = folder if resume else None
    told_by_first(groups, lambda: initial_values(experiment, tokenizer.size, resumed, verify=True) and None)
    given = initial_values(experiment, tokenizer.size, resumed)
    built = build(experiment, tokenizer.size, groups, resolved.config, given)
    fresh: dict[str, Any] = {"step": 0, "cursor": None}
    progress = (load_latest(folder, built, groups) if resume else None) or fresh
    done = progress["step"]
    feed = Feed(lambda cursor: _open_data(experiment, groups, resolved, folder, cursor), groups, progress["cursor"])
    epoch = told_by_first(groups, lambda: feed.samples_per_epoch)
    guard = Guard(experiment, groups, folder, told_by_first(groups, lambda: condemned_steps(folder)))
    guard.restore(progress.get("guard"))
    validation = open_validation(
        experiment,
        data_rank=groups.data_rank,
        data_world=groups.topology.data,
        micro_batch=resolved.plan.micro_batch,
        batches=experiment.run.validation_batches,
    )
    steps = experiment.train.length.steps(experiment.batch.global_, epoch)
    facts = provenance() | {"topology": vars(groups.topology) | {"batch": vars(resolved.plan)}}
    facts["model"] = {"parameters": built.parameters, "vocabulary": tokenizer.size}
    if groups.first:
        _write_down(experiment, resolved, facts, folder, done)
        _introduce(groups, ranks, built, resolved, folder, steps, done, epoch)
    tracker = at_the_end.enter_context(_track(experiment, folder, facts)) if groups.first else None
    saver = Saver(folder, experiment, built, groups, feed, guard)
    stop = StopRequest(groups.device)
    at_the_end.callback(stop.release)
    metrics = folder / "metrics.jsonl"
    peak = peak_flops(groups.device, torch.bfloat16 if resolved.precision == "bf16" else torch.float32)

    def rewind() -> int | None:
        """Go back to the last good checkpoint; returns its step, None where there is none yet."""
        saver.settle(wait=True)
        back = load_latest(folder, built, groups)
        if back is None:
            return None
        feed.rewind(back["cursor"])
        guard.restore(back.get("guard"))
        if groups.first:
            mark_resume(metrics, back["step"])
        return int(back["step"])

    return Run(
        experiment=experiment,
        folder=folder,
        groups=groups,
        built=built,
        feed=feed,
        accumulation=resolved.plan.accumulation,
        validation=validation,
        piece=lambda word: tokenizer.words_of([word])[0],
        meters=Meters(
            groups.device,
            groups.sum,
            trained_seconds(metrics, done),
            flops=lambda batch: batch_flops(experiment.model, tokenizer.size, batch),
            peak=peak * groups.topology.world if peak is not None else None,
        ),
        tracker=tracker,
        saver=saver,
        rewind=rewind,
        guard=guard,
        watch=at_the_end.enter_context(Watch(folder / "hang", groups.rank, experiment.guard.hang_after)),
        pace=Pace(groups),
        steps=steps,
        warmup=experiment.train.warmup.steps(experiment.batch.global_, epoch),
        done=done,
        stop=stop,
    )


def told_by_first(groups: Groups, work: Callable[[], T]) -> T:
    """Do `work` on the first rank and tell the others its result; its InputError is raised there and ends them all."""
    told: list[Any] = [None, False]
    error = None
    if groups.first:
        try:
            told = [work(), False]
        except InputError as mistake:
            told, error = [None, True], mistake
    dist.broadcast_object_list(told, src=0, device=groups.device)
    if error is not None:
        raise error
    if told[1]:
        raise SystemExit(EXIT_MISTAKE)  # the first rank says why
    return told[0]


def _open_folder(experiment: Experiment, folder: Path, resume: bool) -> None:
    """Check the data, and make the run folder."""
    preflight(experiment)
    if not resume and (folder / "metrics.jsonl").exists():
        raise InputError(
            f"{folder}: holds a run already; go on with --resume, or begin another with --set name=ANOTHER"
        )
    folder.mkdir(parents=True, exist_ok=True)


def _open_data(
    experiment: Experiment, groups: Groups, resolved: Resolved, folder: Path, cursor: dict[str, Any] | None
) -> TrainingData | None:
    """Open this rank's data; within a tensor-parallel group only the first rank reads."""
    if groups.tensor_rank != 0:
        return None
    return open_training(
        experiment,
        data_rank=groups.data_rank,
        data_world=groups.topology.data,
        micro_batch=None if experiment.batch.micro_tokens else resolved.plan.micro_batch,
        accumulation=resolved.plan.accumulation,
        resume=cursor,
        quarantine_folder=folder,
    )


def _write_down(experiment: Experiment, resolved: Resolved, facts: dict[str, Any], folder: Path, done: int) -> None:
    save_experiment(experiment, folder / "experiment.yaml")
    shutil.copyfile(experiment.data.tokenizer, folder / "vocab.txt")  # so that the run folder is all one needs
    (folder / "deepspeed.json").write_text(json.dumps(resolved.config, indent=2) + "\n")
    (folder / "provenance.json").write_text(json.dumps(facts, indent=2, default=str) + "\n")
    if done:
        mark_resume(folder / "metrics.jsonl", done)


def _track(experiment: Experiment, folder: Path, facts: dict[str, Any]) -> "Tracker":
    from m3ae_scale.training.tracking import Tracker  # on the one rank that needs MLflow, which takes seconds to import

    tracker = Tracker(experiment, folder, facts)
    tracker.artifact(folder / "experiment.yaml")
    return tracker


def _introduce(
    groups: Groups, ranks: Ranks, built: Any, resolved: Resolved, folder: Path, steps: int, done: int, epoch: int
) -> None:
    """Say what is about to run."""
    topology, plan = groups.topology, resolved.plan
    stage = resolved.config["zero_optimization"]["stage"]
    micro = f"{plan.micro_tokens} tokens" if plan.micro_tokens else f"micro {plan.micro_batch}"
    for line in (
        f"run        {folder}" + (f", resumed at step {done}" if done else ""),
        f"model      {short(built.parameters)} parameters, {resolved.precision}; {built.kernels}",
        f"topology   {topology.world} ranks by {ranks.source}: tensor {topology.tensor} x data {topology.data}, "
        f"ZeRO {stage}, on {groups.device.type}",
        f"batch      {plan.global_batch} = {micro} x data {plan.data} x accumulation {plan.accumulation}",
        f"length     {steps} steps; an epoch is {epoch} samples",
    ):
        print(line, flush=True)
