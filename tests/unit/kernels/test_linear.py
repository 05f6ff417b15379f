"""The 8-bit linear layer against plain arithmetic on the values that it rounded to."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from m3ae_scale.config import KernelConfig
from m3ae_scale.errors import InputError
from m3ae_scale.kernels.choose import choose
from m3ae_scale.kernels.linear import fp8, quantise

BF16 = 2.0**-7  # of the largest value: two roundings of 8 bits, one of them of a sum with the bias
TYPES = {torch.float8_e4m3fn: (3, 2.0**-9), torch.float8_e5m2: (2, 2.0**-16)}  # mantissa bits, smallest step


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    values, scale = quantise(x, dtype)
    return values.float() * scale


@pytest.mark.parametrize("dtype", TYPES)
@given(x=arrays(np.float32, st.integers(1, 40), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_a_value_is_rounded_to_the_nearest(dtype: torch.dtype, x: np.ndarray) -> None:
    bits, smallest = TYPES[dtype]
    given_values, scale = torch.from_numpy(x), quantise(torch.from_numpy(x), dtype)[1]
    allowed = torch.maximum(given_values.abs() * 2.0 ** -(bits + 1), scale * smallest / 2) * (1 + 1e-5)
    assert bool(((rounded(given_values, dtype) - given_values).abs() <= allowed).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    x = torch.ones(3, 16, dtype=torch.bfloat16)
    x[1, 2] = bad
    assert not fp8(x, torch.ones(16, 16, dtype=torch.bfloat16), None).isfinite().all()


@given(
    n=st.integers(1, 50),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 4),
    biased=st.booleans(),
    seed=st.integers(0, 9),
)
def test_products_are_those_of_the_rounded_values(n: int, inputs: int, outputs: int, biased: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight, bias, upstream = (
        torch.randn(*shape).bfloat16().requires_grad_()
        for shape in ((n, 16 * inputs), (16 * outputs, 16 * inputs), (16 * outputs,), (n, 16 * outputs))
    )
    y = fp8(x, weight, bias if biased else None)
    y.backward(upstream)
    x8, weight8 = rounded(x, torch.float8_e4m3fn), rounded(weight, torch.float8_e4m3fn)
    upstream8 = rounded(upstream, torch.float8_e5m2)
    assert_near(y, x8 @ weight8.t() + (bias.float() if biased else 0))
    assert_near(x.grad, upstream8 @ weight8)
    assert_near(weight.grad, upstream8.t() @ x8)
    if biased:
        assert_near(bias.grad, upstream.float().sum(0))


def assert_near(ours: Tensor | None, expected: Tensor) -> None:
    assert ours is not None and ours.dtype == torch.bfloat16
    assert (ours.float() - expected).abs().max() <= BF16 * expected.abs().max()


def test_an_input_is_kept_in_a_byte_a_value() -> None:
    kept: list[Tensor] = []
    x, weight = torch.randn(48, 32).bfloat16(), torch.nn.Parameter(torch.randn(64, 32).bfloat16())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        fp8(x, weight, None)
    assert sum(tensor.nbytes for tensor in kept if tensor is not weight) == x.numel() + 4  # and its scale


def test_it_is_taken_when_asked_for_alone() -> None:
    assert choose(KernelConfig(), "cpu", torch.bfloat16).linear_name == "torch"
    assert choose(KernelConfig(linear="fp8"), "cpu", torch.bfloat16).linear_name == "fp8"
    with pytest.raises(InputError, match=r"kernels.linear: 'fp8' cannot run here"):
        choose(KernelConfig(linear="fp8"), "cpu", torch.float32)
