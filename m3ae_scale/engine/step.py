"""One optimizer step through DeepSpeed, and what DeepSpeed leaves undone without ZeRO.

At ZeRO stage 0 DeepSpeed reports no gradient norm, and its bf16 path counts the norm wrongly under tensor
parallelism; so there the engine is told not to clip, and the clipping is done here.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from m3ae_scale.engine.build import Built
from m3ae_scale.engine.quick_deepspeed import logger as deepspeed_logger
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.parallel.shard import shard_of

# Where DeepSpeed's optimizers take the norm from that they test: ZeRO 1 and 2, ZeRO 3, bf16 without ZeRO.
_NORM_OF = {
    "DeepSpeedZeroOptimizer": "scaled_global_norm",
    "DeepSpeedZeroOptimizer_Stage3": "_get_norm_groups",
    "BF16_Optimizer": "get_grads_for_norm",
}


class Stepped(NamedTuple):
    """What became of an optimizer step."""

    applied: bool
    norm: Tensor | float | None  # global gradient norm before clipping; None where the step was not applied


def set_lr(built: Built, lr: float) -> None:
    """Use learning rate `lr` for the next optimizer step."""
    for optimizer in built.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr


def step(built: Built, groups: Groups, wanted: bool = True) -> Stepped:
    """Take the optimizer step of an accumulated gradient, unless it is not `wanted` or the gradient is not finite.

    A step that is not taken leaves weights, moments and step counts as they are, and drops the gradient. All ranks
    must want the same. Between the micro-batches of a step it only counts.
    """
    engine = built.engine
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return Stepped(False, None)
    norm: Tensor | float | None = None
    if engine.zero_optimization_stage() == 0:
        norm = clip_gradients(engine.module, built.clipping, groups)
        wanted = wanted and _all_finite(norm, groups)
    with contextlib.nullcontext() if wanted else _refused(engine.optimizer):
        engine.step()
    if not (wanted and engine.was_step_applied()):
        return Stepped(False, None)
    return Stepped(True, engine.get_global_grad_norm() if norm is None else norm)


@contextlib.contextmanager
def _refused(optimizer: Any) -> Iterator[None]:
    """Make the engine drop a step by the way it has for gradients that are not finite, which clears its buffers too."""
    name = _NORM_OF.get(type(optimizer).__name__, "step")
    original = getattr(optimizer, name)

    def not_finite(*arguments: Any, **keywords: Any) -> Any:
        if name == "step":  # a plain optimizer, whose gradients the engine clears after the step
            return None
        if name == "get_grads_for_norm":
            return [torch.full((1,), torch.inf, device=optimizer.fp32_groups_flat_partition[0].device)], {}
        norms = original(*arguments, **keywords)
        return [torch.full_like(n, torch.inf) for n in norms] if isinstance(norms, list) else torch.inf

    setattr(optimizer, name, not_finite)
    level = deepspeed_logger.level
    deepspeed_logger.setLevel("ERROR")  # it would say that gradients are not finite
    try:
        yield
    finally:
        deepspeed_logger.setLevel(level)
        delattr(optimizer, name)  # of the instance: the class has its own


def _all_finite(norm: Tensor, groups: Groups) -> bool:
    """Agree on whether every rank's gradient is finite: what tensor-parallel ranks hold alike may still differ."""
    broken = (~norm.isfinite()).to(torch.int32)
    if groups.topology.world > 1:
        dist.all_reduce(broken, op=dist.ReduceOp.MAX)
    return not bool(broken)


def clip_gradients(model: torch.nn.Module, limit: float, groups: Groups) -> Tensor:
    """Scale gradients down to a global norm of `limit` (0: leave them); returns the norm before.

    A parameter that every tensor-parallel rank holds counts once, the parts of a split one all count.
    """
    split: list[Tensor] = []
    whole: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.grad is not None:
            (whole if shard_of(parameter) is None else split).append(parameter.grad)
    total = _sum_of_squares(split, groups.device)
    if groups.tensor is not None:
        dist.all_reduce(total, group=groups.tensor)
    norm = (total + _sum_of_squares(whole, groups.device)).sqrt()
    if limit > 0:
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in split + whole:
            gradient.mul_(scale.to(gradient.dtype))
    return norm


def _sum_of_squares(gradients: list[Tensor], device: torch.device) -> Tensor:
    if not gradients:
        return torch.zeros((), device=device)
    return torch.stack(torch._foreach_norm([g.float() for g in gradients])).square().sum()
