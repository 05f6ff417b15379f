"""One optimizer step through DeepSpeed, and what DeepSpeed leaves undone without ZeRO.

At ZeRO stage 0 DeepSpeed reports no gradient norm, and its bf16 path counts the norm wrongly under tensor
parallelism; so there the engine is told not to clip, and the clipping is done here.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from m3ae_scale.engine.build import Built
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.parallel.shard import shard_of


def set_lr(built: Built, lr: float) -> None:
    """Use learning rate `lr` for the next optimizer step."""
    for group in built.engine.optimizer.param_groups:
        group["lr"] = lr


def step(built: Built, groups: Groups) -> Tensor | float | None:
    """Let the engine take its (micro-)step; returns the global gradient norm before clipping, None between steps."""
    engine = built.engine
    if not engine.is_gradient_accumulation_boundary():
        engine.step()
        return None
    if engine.zero_optimization_stage() > 0:
        engine.step()
        norm: Tensor | float | None = engine.get_global_grad_norm()
        return norm
    norm = clip_gradients(engine.module, built.clipping, groups)
    engine.step()
    return norm


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
