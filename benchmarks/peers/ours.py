"""m3ae_scale itself: the packed model, in the DeepSpeed engine (ZeRO-1, one rank) or in a bare torch loop.

The task's `how` is "deepspeed" or "bare"; its `kernels` and `recompute` change those keys of the experiment; with
`malloc`: "default" freed memory goes back to the kernel, as without parallel/host_memory.py. What has no switch is
undone in the batches: `fill_up` gives every caption padding to the longest that the model takes, which then costs what
padding costs a dense model, and `score_all` sends all tokens through the heads, not masked ones alone.
"""

import ctypes
import itertools
import os
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from serve import read_task, serve

from m3ae_scale.batch import Batch, Targets
from m3ae_scale.bench.synthetic import MASK_RATIO, samples
from m3ae_scale.config import Experiment, LossConfig, ModelConfig
from m3ae_scale.data.mask import visible_mask
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
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


def batches(task: dict[str, Any], model: ModelConfig) -> list[Batch]:
    """The task's micro-batches, with what it wants undone."""
    fill_up, score_all = task.get("fill_up", False), task.get("score_all", False)
    loss = LossConfig(all_image_tokens=score_all, all_text_tokens=score_all)
    made = []
    for seed in range(task["batches"]):
        each = samples(model, task["vocabulary"], task["micro_batch"], text=task["text"], seed=seed)
        if not fill_up:
            made.append(pack(each, loss, model.patch_dim))
            continue
        real = np.array([len(sample.words) for sample in each if sample.words is not None])
        batch = pack([filled_up(sample, model.text_length) for sample in each], loss, model.patch_dim)
        if not score_all:
            batch = replace(batch, text_targets=of_real_words(batch.text_targets, real, model.text_length))
        made.append(batch)
    return made


def filled_up(sample: Sample, length: int) -> Sample:
    """Give the caption padding, as many of it visible as of words."""
    assert sample.words is not None and sample.visible_words is not None
    more = length - len(sample.words)
    visible = visible_mask(more, MASK_RATIO, np.random.default_rng(more))
    words = np.concatenate([sample.words, np.zeros(more, sample.words.dtype)])
    return replace(sample, words=words, visible_words=np.concatenate([sample.visible_words, visible]))


def of_real_words(targets: Targets, real: np.ndarray, length: int) -> Targets:
    """Leave padding out of what is predicted. real: (S,) words of each sample."""
    keep = targets.token % length < torch.from_numpy(real)[targets.sample]
    return Targets(*(getattr(targets, name)[keep] for name in ("row", "token", "sample", "weight")))


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
    supply = itertools.cycle([batch.to(groups.device) for batch in batches(task, experiment.model)])
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
