"""Sequence parallelism (Korthikanti et al. 2022): between the matrix products each rank holds a part of the tokens.

LayerNorm, dropped values and the residual then cost a rank only its part of the time and memory. What tensor
parallelism would sum over ranks is scattered instead, and gathered before the next product: the same bytes.
Megatron's own functions for it ask for the current CUDA device; these run anywhere.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from m3ae_scale.parallel.shard import shard_of


def split_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Keep this rank's rows of what all ranks hold. x: (n, ...) with n a multiple of the ranks -> (n / ranks, ...)."""
    return _Split.apply(x, group)


def join_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Put the rows of all ranks together, for what every rank then does alike. x: (m, ...) -> (m * ranks, ...)."""
    return _Join.apply(x, group)


def column_linear(x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup) -> Tensor:
    """Apply this rank's outputs of a linear layer to the rows of all ranks. x: (m, in) -> (m * ranks, out / ranks)."""
    return _Column.apply(x, weight, bias, group)


def row_linear(x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup) -> Tensor:
    """Sum over ranks, and keep this rank's rows of the sum. x: (m * ranks, in / ranks) -> (m, out)."""
    y: Tensor = _ScatterSum.apply(F.linear(x, weight), group)
    return y if bias is None else y + bias


def sum_gradients(modules: Iterable[nn.Module], group: dist.ProcessGroup) -> None:
    """Sum over ranks the gradients of those parameters that are whole: each rank has them of its rows alone."""

    def summed(gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=group)
        return gradient

    for module in modules:
        for parameter in module.parameters():
            if shard_of(parameter) is None:
                parameter.register_hook(summed)


def _part(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    rows = x.shape[0] // dist.get_world_size(group)
    return x.narrow(0, dist.get_rank(group) * rows, rows).contiguous()


def _gather(x: Tensor, group: dist.ProcessGroup, wait: bool = True) -> tuple[Tensor, dist.Work | None]:
    whole = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    return whole, dist.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=not wait)


def _scatter_sum(x: Tensor, group: dist.ProcessGroup, wait: bool = True) -> tuple[Tensor, dist.Work | None]:
    part = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
    return part, dist.reduce_scatter_tensor(part, x.contiguous(), group=group, async_op=not wait)


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _part(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _gather(gradients[0], ctx.group)[0], None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather(x, group)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _part(gradients[0], ctx.group), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _scatter_sum(x, group)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _gather(gradients[0], ctx.group)[0], None


class _Column(torch.autograd.Function):
    """Keeps its own rows for the backward pass and gathers them again there, each transfer beside a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.biased = group, bias is not None
        return F.linear(_gather(x, group)[0], weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient = gradients[0].contiguous()
        x, weight = ctx.saved_tensors
        whole, gathered = _gather(x, ctx.group, wait=False)
        inputs = gradient @ weight
        part, scattered = _scatter_sum(inputs, ctx.group, wait=False)
        if gathered is not None:
            gathered.wait()
        weights = gradient.t() @ whole
        bias = gradient.sum(0) if ctx.biased else None
        if scattered is not None:
            scattered.wait()
        return part, weights, bias, None
