"""What the ranks do: train the tiny model through the real engine on this rank's share of each batch."""

import contextlib
import functools
import os
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_grad
from tiny import GLOBAL_BATCH, PATCH_DIM, VOCABULARY, experiment, global_batch, gradients, sample

from m3ae_scale.config import Experiment
from m3ae_scale.data.pack import pack
from m3ae_scale.engine.build import Built, build
from m3ae_scale.engine.compile import apply_compile
from m3ae_scale.engine.step import set_lr, step
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import Groups, close_groups, open_groups
from m3ae_scale.parallel.launch import find_ranks
from m3ae_scale.parallel.shard import shard_of

torch.set_num_threads(1)
LR, CLIP, STEPS = 1e-3, 1.0, 20


def curves(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Train each of `job["runs"]` at tensor parallelism `job["tensor"]`; return loss curves and gradient errors."""
    groups = open_groups(find_ranks(os.environ), job["tensor"])
    results = [_train(groups, run) for run in job["runs"]]
    close_groups()
    return results


def contents(job: list[list[str]]) -> list[float]:
    """Step on batches whose ranks hold different kinds; return the worst gradient error of each combination."""
    groups = open_groups(find_ranks(os.environ), 1)
    data, rank, micro = groups.topology.data, groups.data_rank, 3
    tiny = experiment(batch={"global": micro * data})
    built = build(tiny, VOCABULARY, groups, deepspeed_config(data, micro, 1, stage=3))
    set_lr(built, 0.0)  # so that every combination starts from the same weights
    errors = []
    for number, kinds in enumerate(job):
        shares = [[sample(100 * number + 10 * r + i, kind) for i in range(micro)] for r, kind in enumerate(kinds)]
        batch = pack(shares[rank], tiny.loss, PATCH_DIM)
        loss = objective(built.engine(batch), batch, tiny.loss).sum() / micro
        built.engine.backward(loss)
        expected = gradients(tiny, [s for share in shares for s in share])
        errors.append(gradient_error(built, groups, expected))
        step(built, groups)
    close_groups()
    return errors


def deepspeed_config(data: int, micro: int, accumulation: int, stage: int, **more: Any) -> dict[str, Any]:
    """A DeepSpeed config that partitions even the smallest parameter."""
    offload, bf16 = more.get("offload", 0.0), more.get("bf16", False)  # offload: the optimizer's share on the host
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "ratio": float(offload)}
    if 0 < offload < 1:
        zero["sub_group_size"] = 20_000  # several to divide
    # As in configs/ds/*_bf16.json: gradients are summed in fp32. DeepSpeed refuses this at stage 0.
    sums = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}} if bf16 and stage else {}
    return {
        **sums,
        "train_batch_size": data * micro * accumulation,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": CLIP,
        "zero_optimization": zero,
        "bf16": {"enabled": bf16},
    }


def open_engine(tiny: Experiment, groups: Groups, config: dict[str, Any]) -> Built:
    """Build the engine; on a CPU, what is left of an offload stays on a device that is the host too."""
    with patch.object(get_accelerator(), "_name", f"{groups.device.type}:0"):
        return build(tiny, VOCABULARY, groups, config)


def gradient_error(built: Built, groups: Groups, expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of any gradient from `expected`, relative to the largest one of its tensor."""
    worst = 0.0
    for name, parameter in built.engine.module.named_parameters():
        ours = parameter.grad if built.engine.zero_optimization_stage() == 0 else safe_get_full_grad(parameter)
        ours = torch.zeros_like(expected[name]) if ours is None else ours.float()
        shard = shard_of(parameter)
        if shard is not None:
            parts = [torch.empty_like(ours) for _ in range(groups.topology.tensor)]
            dist.all_gather(parts, ours.contiguous(), group=groups.tensor)
            ours = shard.join(parts)
        scale = max(expected[name].abs().max().item(), 1e-4)
        worst = max(worst, ((ours - expected[name]).abs().max() / scale).item())
    return worst


@contextlib.contextmanager
def kept_bytes(count: list[int]) -> Iterator[None]:
    """Append the bytes of activations that are kept inside the context for the backward pass; parameters are none."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield
    count.append(sum(kept.values()))


def _train(groups: Groups, run: dict[str, Any]) -> dict[str, Any]:
    run = dict(run)
    steps, unwanted, broken = run.pop("steps", STEPS), run.pop("unwanted", []), run.pop("broken", [])
    accumulation, compiled = run.pop("accumulation", 1), run.pop("compile", "none")
    tiny = experiment(
        engine={"deepspeed": "none", "recompute": run.pop("recompute", "none")},
        parallel={"tensor": groups.topology.tensor, "sequence": run.pop("sequence", False)},
        kernels={"linear": run.pop("linear", "auto"), "compile": compiled},
    )
    data = groups.topology.data
    share = GLOBAL_BATCH // data
    micro = share // accumulation
    # Everything of the compiler but its code: inductor's takes minutes, and has other sums.
    traced = functools.partial(apply_compile, backend="aot_eager")
    with patch("m3ae_scale.engine.build.apply_compile", traced):
        built = open_engine(tiny, groups, deepspeed_config(data, micro, accumulation, **run))
    curve, error, applied, kept = [], 0.0, [], []
    for number in range(steps):
        mine = global_batch(number)[groups.data_rank * share : (groups.data_rank + 1) * share]
        set_lr(built, LR)
        total = torch.zeros(1, dtype=torch.float64)
        for i in range(accumulation):
            batch = pack(mine[i * micro : (i + 1) * micro], tiny.loss, PATCH_DIM)
            with kept_bytes(kept):
                each = objective(built.engine(batch), batch, tiny.loss)
            if number in broken and groups.rank == groups.topology.world - 1:
                each.register_hook(lambda gradient: gradient * torch.nan)
            built.engine.backward(each.sum() * (data * accumulation / GLOBAL_BATCH))
            total += each.sum().double().detach()
            if number == 0 and i == accumulation - 1 and not run.get("bf16"):
                error = gradient_error(built, groups, gradients(tiny, global_batch(0)))
            stepped = step(built, groups, wanted=number not in unwanted)
        norm, applied = stepped.norm, [*applied, stepped.applied]
        curve.append(groups.sum(total).item() / GLOBAL_BATCH)
    return {"curve": curve, "gradient_error": error, "last_norm": float(norm), "applied": applied, "kept": kept[-1]}
