"""Every backend that runs here gives the losses, words and gradients of all logits at once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae_scale.kernels import linear_cross_entropy
from m3ae_scale.kernels.linear_cross_entropy import BACKENDS, available

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WORDS, DIM = 37, 16


def problem(tokens: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((tokens, DIM), (WORDS, DIM), (WORDS,))
    return [torch.randn(*shape, generator=generator).to(DEVICE, dtype).requires_grad_() for shape in shapes]


def run(name: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    tokens = len(inputs[0])
    loss, word = BACKENDS[name](*inputs, torch.arange(tokens, device=DEVICE) * 11 % WORDS, None)
    assert loss.dtype == torch.float32 and word.dtype == torch.int64
    (loss * torch.linspace(0.1, 2, tokens, device=DEVICE)).sum().backward()
    return [loss.detach(), word, *(tensor.grad.float() for tensor in inputs)]


@pytest.mark.parametrize("name", available(DEVICE))
@settings(max_examples=25)
@given(tokens=st.integers(0, 40), rows=st.integers(1, 50))
def test_backend_equals_all_logits_at_once(name: str, tokens: int, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_cross_entropy, "PIECE_BYTES", 4 * WORDS * rows)
        inputs = problem(tokens)
        for ours, theirs in zip(run(name, inputs), run("plain", inputs), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", available(DEVICE))
def test_half_precision_is_near(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_cross_entropy, "PIECE_BYTES", 4 * WORDS * 16)
    inputs = problem(100, torch.bfloat16)
    exact = run("plain", [tensor.float() for tensor in inputs])
    ours = run(name, inputs)
    for mine, theirs in zip((ours[0], *ours[2:]), (exact[0], *exact[2:]), strict=True):
        assert (mine - theirs).norm() <= 0.01 * theirs.norm()  # 8 bits of mantissa


def test_pieces_hold_less_than_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the graph keeps for the backward pass is the last piece."""
    monkeypatch.setattr(linear_cross_entropy, "PIECE_BYTES", 4 * WORDS * 8)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        BACKENDS["chunked"](*problem(64), torch.zeros(64, dtype=torch.int64, device=DEVICE), None)
    assert max(kept) <= max(WORDS * DIM, 64 * DIM)
