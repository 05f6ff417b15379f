"""Sequence parallelism (Korthikanti et al. 2022): between the matrix products each rank holds a part of the tokens.

LayerNorm, dropped values and the residual then cost a rank only its part of the time and memory. What tensor
parallelism would sum over ranks is scattered instead, and gathered before the next product: the same bytes.
Megatron's own functions for it ask for the current CUDA device; these run anywhere.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from m3ae_scale.kernels.linear import LinearFn, torch_linear
from m3ae_scale.parallel.shard import shard_of

Move = Callable[[Tensor, dist.ProcessGroup], Tensor]


def split_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Keep this rank's rows of what all ranks hold. x: (n, ...) with n a multiple of the ranks -> (n / ranks, ...)."""
    return _Moved.apply(x, group, _part, _gather)


def join_rows(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Put the rows of all ranks together, for what every rank then does alike. x: (m, ...) -> (m * ranks, ...)."""
    return _Moved.apply(x, group, _gather, _part)


def column_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup, linear: LinearFn = torch_linear
) -> Tensor:
    """Apply this rank's outputs of a linear layer to the rows of all ranks. x: (m, in) -> (m * ranks, out / ranks)."""
    if linear is torch_linear:
        return _Column.apply(x, weight, bias, group)
    return linear(_Moved.apply(x, group, _gather, _scatter_sum), weight, bias)


def row_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup, linear: LinearFn = torch_linear
) -> Tensor:
    """Sum over ranks, and keep this rank's rows of the sum. x: (m * ranks, in / ranks) -> (m, out)."""
    y: Tensor = _Moved.apply(linear(x, weight, None), group, _scatter_sum, _gather)
    return y if bias is None else y + bias


def sum_gradients(modules: Iterable[nn.Module], group: dist.ProcessGroup) -> None:
    """Sum over ranks the gradients of those parameters that are whole: each rank has them of its rows alone."""

    def summed(gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # a hook may not write to what it is given
        dist.all_reduce(gradient, group=group)
        return gradient

    for module in modules:
        for parameter in module.parameters():
            if shard_of(parameter) is None:
                parameter.register_hook(summed)


def _part(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    rows = x.shape[0] // dist.get_world_size(group)
    return x.narrow(0, dist.get_rank(group) * rows, rows).contiguous()


def _gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    whole, arrives = _start_gather(x, group)
    arrives.wait()
    return whole


def _scatter_sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    part, arrives = _start_scatter_sum(x, group)
    arrives.wait()
    return part


def _start_gather(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, dist.Work]:
    whole = x.new_empty(x.shape[0] * dist.get_world_size(group), *x.shape[1:])
    return whole, dist.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=True)


def _start_scatter_sum(x: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, dist.Work]:
    part = x.new_empty(x.shape[0] // dist.get_world_size(group), *x.shape[1:])
    return part, dist.reduce_scatter_tensor(part, x.contiguous(), group=group, async_op=True)


class _Moved(torch.autograd.Function):
    """Moves rows between ranks by one function, and their gradients by another."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, forth: Move, back: Move) -> Tensor:
        ctx.group, ctx.back = group, back
        return forth(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.back(gradients[0], ctx.group), None, None, None


class _Column(torch.autograd.Function):
    """Keeps its own rows for the backward pass and gathers them again there, each transfer beside a product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.group, ctx.biased = group, bias is not None
        return F.linear(_gather(x, group), weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        gradient = gradients[0].contiguous()
        x, weight = ctx.saved_tensors
        whole, gathered = _start_gather(x, ctx.group)
        inputs = gradient @ weight
        part, scattered = _start_scatter_sum(inputs, ctx.group)
        gathered.wait()
        weights = gradient.t() @ whole
        bias = gradient.sum(0) if ctx.biased else None
        scattered.wait()
        return part, weights, bias, None
