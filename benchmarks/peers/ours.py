"""m3ae_scale itself: the packed model, in the DeepSpeed engine (ZeRO-1, one rank) or in a bare torch loop.

The task's `how` is "deepspeed" or "bare"; its `kernels` and `recompute` change those keys of the
experiment; with `malloc`: "default" freed memory goes back to the kernel, as without parallel/host_memory.py.
"""

import ctypes
import itertools
import os
from typing import Any

import torch
from serve import read_task, serve

from m3ae_scale.bench.synthetic import batches
from m3ae_scale.config import Experiment
from m3ae_scale.engine.build import build, build_model, draw_values, parameter_groups
from m3ae_scale.engine.deepspeed_config import resolve
from m3ae_scale.engine.step import set_lr, step
from m3ae_scale.kernels.adam import build_adam
from m3ae_scale.kernels.choose import choose
from m3ae_scale.kernels.peak import synchronise
from m3ae_scale.model import PlainLayers
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import open_groups
from m3ae_scale.parallel.launch import find_ranks


def tower(shape: list[int]) -> dict[str, int]:
    """A tower of the task, as the experiment writes it."""
    dim, depth, heads = shape
    return {"dim": dim, "depth": depth, "heads": heads, "mlp_dim": 4 * dim}


def main() -> None:
    """Build, and serve."""
    task = read_task()
    torch.set_num_threads(task["threads"])
    values: dict[str, Any] = {
        "name": "peers",
        "model": {
            "encoder": tower(task["encoder"]),
            "decoder": tower(task["decoder"]),
            "image_size": task["image"],
            "patch": task["patch"],
        },
        "data": {"sources": [{"name": "none", "shards": "none"}], "tokenizer": "none"},
        "batch": {"global": task["micro_batch"]},
        "train": {"length": "1 steps"},
        "engine": {
            "deepspeed": f"zero1_{task['precision']}",
            "overrides": {"train_micro_batch_size_per_gpu": task["micro_batch"]},
            "recompute": task.get("recompute", "none"),
        },
        "kernels": task.get("kernels", {}),
    }
    experiment = Experiment.model_validate(values)
    groups = open_groups(find_ranks(os.environ), 1)
    if task.get("malloc") == "default":
        ctypes.CDLL(None).mallopt(-4, 65536)  # M_MMAP_MAX
        ctypes.CDLL(None).mallopt(-1, 128 * 1024)  # M_TRIM_THRESHOLD
    made = batches(experiment.model, task["vocabulary"], task["micro_batch"], task["batches"], text=task["text"])
    supply = itertools.cycle([batch.to(groups.device) for batch in made])
    if task["how"] == "deepspeed":
        built = build(experiment, task["vocabulary"], groups, resolve(experiment, {}, groups.topology).config)
        kernels = str(built.kernels)

        def one(_: int) -> None:
            batch = next(supply)
            set_lr(built, 1e-4)
            built.engine.backward(objective(built.engine(batch), batch, experiment.loss).mean())
            step(built, groups)
    else:
        dtype = torch.bfloat16 if task["precision"] == "bf16" else torch.float32
        chosen = choose(experiment.kernels, groups.device.type, dtype)
        kernels = str(chosen)
        model = build_model(experiment, task["vocabulary"], PlainLayers(), chosen)
        draw_values(model, 0, groups, {})
        model.to(groups.device)
        optimizer = build_adam("torch", parameter_groups(model, 0.05), experiment.optimizer, 1e-4)

        def one(_: int) -> None:
            batch = next(supply)
            with torch.autocast(groups.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = objective(model(batch), batch, experiment.loss).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    serve(one, lambda: synchronise(groups.device), {"torch": torch.__version__, "kernels": kernels})


if __name__ == "__main__":
    main()
