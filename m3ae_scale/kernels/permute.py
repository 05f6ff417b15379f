"""Reordering of rows by a permutation whose inverse is known: the gradient is a gather too, never a colliding add."""

from typing import Any

import torch
from torch import Tensor


class _PermuteRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return grads[0].index_select(0, inverse), None, None


def permute_rows(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Return `x[order]`. x: (n, dim); order, inverse: (n,) int64 with order[inverse[j]] = j."""
    return _PermuteRows.apply(x, order, inverse)
