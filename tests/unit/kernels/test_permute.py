import torch
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.kernels.permute import permute_rows


@given(n=st.integers(0, 12), seed=st.integers(0, 2**31))
def test_permute_rows_and_its_gradient(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator)
    x = torch.randn(n, 3, generator=generator, requires_grad=True)
    weight = torch.randn(n, 3, generator=generator)
    out = permute_rows(x, order, order.argsort())
    assert torch.equal(out, x[order])
    (out * weight).sum().backward()
    expected = torch.autograd.grad((x[order] * weight).sum(), x)[0]
    assert torch.equal(x.grad, expected)
