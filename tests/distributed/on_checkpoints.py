"""What the ranks do: train the tiny model, save it, and go on from what other topologies saved."""

import os
import resource
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime import engine as deepspeed_engine
from on_ranks import LR, deepspeed_config, open_engine
from tiny import GLOBAL_BATCH, PATCH_DIM, VOCABULARY, experiment, global_batch

from m3ae_scale.data.pack import pack
from m3ae_scale.engine.build import Built, build
from m3ae_scale.engine.checkpoint import (
    BackgroundSave,
    SaveFailed,
    latest_checkpoint,
    load_checkpoint,
    load_latest,
    plan,
    save_checkpoint,
)
from m3ae_scale.engine.checkpoint.files import MappedFile
from m3ae_scale.engine.checkpoint.folder import discard
from m3ae_scale.engine.checkpoint.format import KINDS, read_manifest
from m3ae_scale.engine.step import set_lr, step
from m3ae_scale.errors import InputError
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import Groups, close_groups, open_groups
from m3ae_scale.parallel.launch import find_ranks

torch.set_num_threads(1)
# Small enough that the tiny model is shared out over all ranks, in several rounds and files.
plan.WRITER_BYTES, plan.ROUND_BYTES, plan.FILE_BYTES = 2**18, 2**17, 2**20


def save_all(job: dict[str, Any]) -> dict[str, list[float]]:
    """Train each of `job["runs"]` for `job["at"]` steps, save it under its name, train on to `job["end"]`."""
    groups = open_groups(find_ranks(os.environ), job["tensor"])
    curves = {}
    for name, run in job["runs"].items():
        built = open_layout(groups, run)
        curve = train(built, groups, 0, job["at"])
        save_checkpoint(Path(job["folder"]) / name, built, groups, {"step": job["at"], "cursor": {"from": name}})
        curves[name] = curve + train(built, groups, job["at"], job["end"])
    close_groups()
    return curves


def resume_all(job: dict[str, Any]) -> list[dict[str, Any]]:
    """For each (run, checkpoint) of `job["pairs"]`: load into a fresh engine, save again, train on to the end."""
    groups = open_groups(find_ranks(os.environ), job["tensor"])
    results = []
    for number, (run, checkpoint) in enumerate(job["pairs"]):
        built = open_layout(groups, run)
        progress = load_checkpoint(Path(checkpoint), built, groups)
        again = save_checkpoint(Path(job["folder"]) / f"again-{job['name']}-{number}", built, groups, progress)
        curve = train(built, groups, job["at"], job["end"])
        results.append({"curve": curve, "progress": progress, "differing": differing(Path(checkpoint), again)})
    close_groups()
    return results


def open_layout(groups: Groups, run: dict[str, Any]) -> Built:
    """The tiny model under ZeRO stage run["stage"], and whatever else deepspeed_config takes."""
    data, run = groups.topology.data, dict(run)
    # Without ZeRO, DeepSpeed keeps flat bf16 masters for the fused Adams that it knows, all for CUDA: torch's for once.
    fused = torch.optim.AdamW if run.pop("fused", False) else deepspeed_engine.FusedAdam
    with mock.patch.object(deepspeed_engine, "FusedAdam", fused):
        return open_engine(experiment(), groups, deepspeed_config(data, GLOBAL_BATCH // data, 1, **run))


def train(built: Built, groups: Groups, first: int, last: int) -> list[float]:
    """Take the optimizer steps first .. last; returns the loss of each."""
    tiny, data = experiment(), groups.topology.data
    share = GLOBAL_BATCH // data
    curve = []
    for number in range(first, last):
        batch = pack(global_batch(number)[groups.data_rank * share :][:share], tiny.loss, PATCH_DIM)
        set_lr(built, LR)
        each = objective(built.engine(batch), batch, tiny.loss)
        built.engine.backward(each.sum() * (data / GLOBAL_BATCH))
        step(built, groups)
        curve.append(groups.sum(each.sum().double().detach().reshape(1)).item() / GLOBAL_BATCH)
    return curve


def differing(one: Path, other: Path) -> list[str]:
    """Name the tensors of two checkpoints that are not equal bit for bit."""
    a, b = read_manifest(one), read_manifest(other)
    found = [] if (a.shapes, a.step, a.adam_steps) == (b.shapes, b.step, b.adam_steps) else ["manifest"]
    for kind in KINDS:
        for name in a.shapes:
            arrays = [MappedFile(p / m.places[name][kind]).array(name) for p, m in ((one, a), (other, b))]
            if not np.array_equal(*arrays):
                found.append(f"{kind} {name}")
    return found


def meet_a_full_disk(job: dict[str, Any]) -> dict[str, Any]:
    """Save, then save where the disk is full on one rank or on all, then save with room again, training all along.

    job["limit"]: the last rank may write files of this many bytes only; without it, job["folder"] itself is full.
    """
    groups = open_groups(find_ranks(os.environ), 1)
    folder, built = Path(job["folder"]), open_layout(groups, {"stage": 2})
    curve = train(built, groups, 0, 2)
    save_checkpoint(folder, built, groups, {"step": 2})
    before, refused = resource.getrlimit(resource.RLIMIT_FSIZE), None
    filler = folder / "filler"
    if "limit" not in job and groups.first:
        usage = os.statvfs(folder)
        filler.write_bytes(b"0" * (usage.f_bavail * usage.f_bsize - 2**20))
    if "limit" in job and groups.rank == groups.topology.world - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], before[1]))
    try:
        save_checkpoint(folder, built, groups, {"step": 2})
    except SaveFailed as problem:
        refused = str(problem)
    refusals: list[Any] = [None] * groups.topology.world
    dist.all_gather_object(refusals, refused)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    after = [p.name for p in (folder / "checkpoints").iterdir()]
    good = latest_checkpoint(folder)
    dist.barrier()
    if groups.first:
        filler.unlink(missing_ok=True)
        for path in (folder / "checkpoints").iterdir() if "limit" not in job else []:
            discard(path)  # the file system has room for one only
    dist.barrier()
    curve += train(built, groups, 2, 4)
    again = save_checkpoint(folder, built, groups, {"step": 4})
    close_groups()
    return {"curve": curve, "refusals": refusals, "after": after, "good": str(good), "again": str(again)}


def load_what_does_not_fit(job: dict[str, Any]) -> list[str]:
    """Save; then try to load it with another vocabulary, another model, and damaged; return what was said."""
    groups = open_groups(find_ranks(os.environ), 1)
    folder, built = Path(job["folder"]), open_layout(groups, {"stage": 1})
    path = save_checkpoint(folder, built, groups, {"step": 1})
    said = []
    config = deepspeed_config(groups.topology.data, GLOBAL_BATCH // groups.topology.data, 1, stage=1)
    model = experiment().model.model_dump()
    others = [
        build(experiment(), VOCABULARY - 1, groups, config),
        build(experiment(model=model | {"decoder": model["decoder"] | {"depth": 3}}), VOCABULARY, groups, config),
        build(experiment(model=model | {"decoder": model["decoder"] | {"mlp_dim": 128}}), VOCABULARY, groups, config),
        built,
    ]
    for other in others:
        if other is built and groups.first:
            os.truncate(path / "exp_avg-00001.safetensors", 100)
        dist.barrier()
        try:
            load_checkpoint(path, other, groups)
        except InputError as problem:
            said.append(str(problem))
    try:
        load_latest(folder, built, groups)
    except InputError as problem:
        said.append(str(problem))
    said.append(str(load_latest(folder / "another", built, groups)))
    gathered: list[Any] = [None] * groups.topology.world
    dist.all_gather_object(gathered, said)
    close_groups()
    assert all(other == said for other in gathered), gathered
    return said


def save_in_the_background(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Save at step 2 and train on while that is written, at every stage; then once more where it cannot be written."""
    groups = open_groups(find_ranks(os.environ), job["tensor"])
    results = []
    for stage in range(4):
        folder, built = Path(job["folder"]) / str(stage), open_layout(groups, {"stage": stage})
        train(built, groups, 0, 2)
        at_once = save_checkpoint(folder, built, groups, {"step": 2})
        pending = BackgroundSave(folder, built, groups, {"step": 2})
        curve = train(built, groups, 2, 4)
        meanwhile = latest_checkpoint(folder)
        dist.barrier()
        behind = pending.settle(wait=True)
        results.append({"curve": curve, "differing": differing(at_once, behind), "meanwhile": meanwhile == at_once})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if groups.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    pending, refused = BackgroundSave(folder, built, groups, {"step": 4}), ""
    try:
        while pending.settle() is None:
            pass
    except SaveFailed as problem:
        refused = str(problem)
    results.append({"refused": refused, "after": sorted(p.name for p in (folder / "checkpoints").iterdir())})
    close_groups()
    return results
