"""Every attention backend that runs here gives what the written-out softmax gives."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.batch import Stream
from m3ae_scale.kernels.attention import BACKENDS, available, packing_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CASES = [(name, torch.float32) for name in available(DEVICE, torch.float32)]
CASES += [(name, torch.bfloat16) for name in available(DEVICE, torch.bfloat16)]


def stream_of(lengths: list[int]) -> Stream:
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    rows = torch.arange(int(bounds[-1]))
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    cu_seqlens = torch.from_numpy(bounds.astype(np.int32))
    return Stream(rows, rows, rows * 0, rows * 0, sample, cu_seqlens, max(lengths))


def run(name: str, qkv: torch.Tensor, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    qkv = qkv.clone().requires_grad_()
    out = BACKENDS[name](qkv, packing_of(stream))
    (out.float() * torch.linspace(0, 1, out.numel(), device=out.device).view_as(out)).sum().backward()
    return out.detach().float(), qkv.grad.float()


@pytest.mark.parametrize(("name", "dtype"), CASES)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_backend_equals_reference(name: str, dtype: torch.dtype, lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), 3, 2, 16, generator=generator).to(dtype).to(DEVICE)
    stream = stream_of(lengths)
    expected = run("reference", qkv.float(), stream)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5  # 8 bits of mantissa
    for ours, theirs in zip(run(name, qkv, stream), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_attention_is_bidirectional_and_stays_in_its_sample(name: str, dtype: torch.dtype) -> None:
    stream = stream_of([3, 4])
    qkv = torch.randn(7, 3, 2, 16, generator=torch.Generator().manual_seed(0)).to(dtype).to(DEVICE)
    before, _ = run(name, qkv, stream)
    changed = qkv.clone()
    changed[2, 2] += 1.0  # the value of the last token of the first sample
    after, _ = run(name, changed, stream)
    differs = (after - before).abs().amax(dim=(1, 2)) > 1e-3
    assert differs.tolist() == [True, True, True, False, False, False, False]
