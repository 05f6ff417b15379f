"""What the ranks do: train the tiny model a little and count the bytes of every tensor that is then held."""

import gc
import os
from typing import Any

import torch
from on_ranks import LR, deepspeed_config, open_engine
from tiny import GLOBAL_BATCH, PATCH_DIM, experiment, global_batch

from m3ae_scale.data.pack import pack
from m3ae_scale.engine.step import set_lr, step
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import Groups, close_groups, open_groups
from m3ae_scale.parallel.launch import find_ranks


def held(job: dict[str, Any]) -> list[int]:
    """For each of `job["runs"]`, the most bytes that this rank holds before a step, activations apart."""
    groups = open_groups(find_ranks(os.environ), job["tensor"])
    results = [_held_by(groups, dict(run)) for run in job["runs"]]
    close_groups()
    return results


def _held_by(groups: Groups, run: dict[str, Any]) -> int:
    gc.collect()
    before = _storages()
    data, tiny = groups.topology.data, experiment(parallel={"tensor": groups.topology.tensor})
    share = GLOBAL_BATCH // data
    micro, accumulation = share // 2, 2
    config = deepspeed_config(data, micro, accumulation, **run)
    # Buffers are small beside the states of a model that is worth sharding; beside this one they would not be.
    config["zero_optimization"] |= {"reduce_bucket_size": 1000, "allgather_bucket_size": 1000}
    built = open_engine(tiny, groups, config)
    most = 0
    for number in range(2):
        mine = global_batch(number)[groups.data_rank * share :][:share]
        set_lr(built, LR)
        for i in range(accumulation):
            batch = pack(mine[i * micro : (i + 1) * micro], tiny.loss, PATCH_DIM)
            built.engine.backward(objective(built.engine(batch), batch, tiny.loss).sum())
            del batch
            if number:  # Adam's moments are there from the first step on
                gc.collect()
                now = {place: size for place, size in _storages().items() if place not in before}
                most = max(most, sum(now.values()))
            step(built, groups)
    return most


def _storages() -> dict[int, int]:
    found = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # isinstance asks every proxy for its class
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return found
