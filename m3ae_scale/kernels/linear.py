"""The linear layers of the blocks: x @ weight.T + bias.

Backends
  torch  torch's own, in the precision of the engine (anywhere)
  fp8    its three matrix products in 8 bits: inputs and weight in E4M3, gradients in E5M2 (Micikevicius et al. 2022),
         each tensor scaled by its own largest value at every use (CUDA from compute capability 8.9, bf16; on a CPU in
         bf16 too, where it shows the numbers and saves nothing). Keeps its input for the backward pass in 8 bits.
         Changes the numbers, so that `auto` never takes it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

MULTIPLE = 16  # of both widths of the weight: what the 8-bit matrix products of a GPU can take

LinearFn = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def torch_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply torch's own. x: (n, in); weight: (out, in); bias: (out,) -> (n, out)."""
    return F.linear(x, weight, bias)  # looked up at each call: DeepSpeed puts its own there at ZeRO-3


def fp8(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply it in 8 bits. x: (n, in); weight: (out, in); bias: (out,) -> (n, out), of the precision of x."""
    return _Fp8.apply(x, weight, bias)


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Round `x` to an 8-bit type over a scale: the rounded values in row order, and their scale, a float32 number.

    The largest value becomes the largest of the type. A value that is not finite stays so, for the step's guard to see.
    """
    top = torch.finfo(dtype).max
    largest = torch.linalg.vector_norm(x, torch.inf, dtype=torch.float32)
    scale = largest.clamp(min=torch.finfo(torch.float32).tiny * top) / top
    return (x.float() / scale).clamp(-top, top).to(dtype).contiguous(), scale


class _Fp8(torch.autograd.Function):
    """Saves the weight itself, not its rounded values: ZeRO-3 gathers what a saved parameter holds before backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x8, x_scale = quantise(x, torch.float8_e4m3fn)
        weight8, weight_scale = quantise(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(x8, x_scale, weight)
        ctx.biased = bias is not None
        # A sum in the tensor cores' own 14 bits is enough for values, not for gradients (as torchao and TE do it).
        y = _product(x8, weight8, x_scale, weight_scale, x.dtype, fast=True)
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x8, x_scale, weight = ctx.saved_tensors
        (gradient,) = gradients
        gradient8, scale = quantise(gradient, torch.float8_e5m2)
        weight8, weight_scale = quantise(weight, torch.float8_e4m3fn)
        of_x = _product(gradient8, _turned(weight8), scale, weight_scale, gradient.dtype)
        of_weight = _product(_turned(gradient8), _turned(x8), scale, x_scale, weight.dtype)
        return of_x, of_weight, gradient.sum(0) if ctx.biased else None


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, fast: bool = False) -> Tensor:
    """Multiply a (rows, inner) by b.T, b: (columns, inner); both hold 8 bits in row order, as the kernels want it."""
    recipe = F.ScalingType.TensorWise  # one scale a tensor
    return F.scaled_mm(a, b.t(), a_scale, recipe, b_scale, recipe, output_dtype=dtype, use_fast_accum=fast)


def _turned(x: Tensor) -> Tensor:
    """Transpose 8-bit values in memory, their rows filled up with zeros: (n, m) -> (m, n up to a MULTIPLE)."""
    rows, columns = x.shape
    # Copied as bytes: not every device copies the 8-bit types. A byte 0 is the number 0 in both.
    turned = torch.zeros(columns, rows + -rows % MULTIPLE, dtype=torch.uint8, device=x.device)
    turned[:, :rows] = x.view(torch.uint8).t()
    return turned.view(x.dtype)


BACKENDS: dict[str, LinearFn] = {"torch": torch_linear, "fp8": fp8}


def available(device: str, dtype: torch.dtype) -> list[str]:
    """Name the backends that run `dtype` on `device` ("cuda" or "cpu"), the default first."""
    capable = device == "cpu" or (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9))
    return ["torch", "fp8"] if capable and dtype == torch.bfloat16 and hasattr(F, "scaled_mm") else ["torch"]
