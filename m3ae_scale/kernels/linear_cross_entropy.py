"""The text head's last layer with its loss: cross-entropy of x @ weight.T + bias, of masked real tokens only.

Every backend gives the loss and the likeliest word of each token, so that nobody else needs the logits.

Backends
  chunked  a bounded piece of the logits at a time, recomputed in the backward pass but for the last piece; with the
           vocabulary split over ranks too (anywhere)
  liger    Liger's fused linear cross-entropy, Triton (CUDA, liger-kernel >= 0.8.5)
  torch    torch.nn.functional.linear_cross_entropy, in chunks (torch >= 2.13); looks for the likeliest word apart
  plain    all logits at once: what the others are tested against
"""

from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

PIECE_BYTES = 2**28  # of one piece of logits, in float32


class Part(NamedTuple):
    """The part of the vocabulary that this rank's rows of the weight are."""

    group: dist.ProcessGroup  # the ranks that hold it together, equal parts in rank order
    first: int  # word id of the first row
    words: int  # of the whole vocabulary; rows past it are padding


LinearCrossEntropy = Callable[[Tensor, Tensor, Tensor, Tensor, Part | None], tuple[Tensor, Tensor]]


def plain(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, part: Part | None = None) -> tuple[Tensor, Tensor]:
    """Score all tokens at once.

    x: (K, dim); weight: (words, dim); bias: (words,); target: (K,) int64 -> loss (K,) float32 in nats, and the
    likeliest word of each token (K,) int64.
    """
    assert part is None, "a split vocabulary needs `chunked`"
    logits = F.linear(x, weight, bias)
    return F.cross_entropy(logits.float(), target, reduction="none"), logits.argmax(-1)


def chunked(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, part: Part | None = None) -> tuple[Tensor, Tensor]:
    """Score the tokens in pieces: as `plain`, but also for a `part` of the vocabulary."""
    rows = max(1, PIECE_BYTES // (4 * weight.shape[0]))
    return _Chunked.apply(x, weight, bias, target, part, rows)


def torch_chunked(
    x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, part: Part | None = None
) -> tuple[Tensor, Tensor]:
    """Score with torch's own chunked operation: as `plain`."""
    if not len(x):  # it divides by the number of tokens
        return plain(x, weight, bias, target, part)
    options = torch.nn.LinearCrossEntropyOptions()
    loss = F.linear_cross_entropy(x, weight, target, linear_bias=bias, reduction="none", options=options)
    rows = max(1, PIECE_BYTES // (4 * weight.shape[0]))
    with torch.no_grad():
        likeliest = [F.linear(piece, weight, bias).argmax(-1) for piece in x.split(rows)]
    return loss.float(), torch.cat(likeliest)


def liger(x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, part: Part | None = None) -> tuple[Tensor, Tensor]:
    """Score with Liger's Triton kernels: as `plain`."""
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

    if not len(x):
        return plain(x, weight, bias, target, part)
    # (x, weight, target, bias, class weights, ignored id, z-loss, smoothing, reduction, softcap, return z-loss,
    # accumulation, token scaling, return accuracy, return predictions)
    options = (None, -100, 0.0, 0.0, "none", None, False, torch.float32, False, False, True)
    loss, _, _, likeliest = LigerFusedLinearCrossEntropyFunction.apply(x, weight, target, bias, *options)
    return loss.float(), likeliest


class _Chunked(torch.autograd.Function):
    """Saves the weight itself, not a view of it: ZeRO-3 gathers what a saved parameter holds before the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, target: Tensor, part: Part | None, rows: int
    ) -> tuple[Tensor, Tensor]:
        log_sums, hits, values, words = [], [], [], []
        logits = x.new_empty(0, weight.shape[0])
        for piece, wanted in zip(x.split(rows), target.split(rows), strict=True):
            logits = _logits(piece, weight, bias, part)
            whole = logits.float()
            value, word = whole.max(-1)
            log_sums.append(whole.sub(value[:, None]).exp_().sum(-1).log_().add_(value))
            column, mine = _column(wanted, weight, part)
            hits.append(whole.gather(1, column[:, None]).squeeze(1) * mine)
            values.append(value)
            words.append(word)
        log_sum, hit, likeliest = _join(torch.cat(log_sums), torch.cat(hits), torch.cat(values), torch.cat(words), part)
        ctx.save_for_backward(x, weight, bias, target, log_sum, logits)
        ctx.part, ctx.rows = part, rows
        ctx.mark_non_differentiable(likeliest)
        return log_sum - hit, likeliest

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, target, log_sum, last = ctx.saved_tensors
        gradient_x = torch.empty_like(x, dtype=torch.float32)
        gradient_weight: Tensor | None = None
        gradient_bias = torch.zeros_like(bias, dtype=torch.float32)
        pieces = [tensor.split(ctx.rows) for tensor in (x, target, log_sum, grads[0], gradient_x)]
        for start, (piece, wanted, total, upstream, out) in enumerate(zip(*pieces, strict=True)):
            kept = (start + 1) * ctx.rows >= len(x)
            logits = last if kept else _logits(piece, weight, bias, ctx.part)
            gradient = logits.float().sub(total[:, None]).exp_()  # the softmax
            column, mine = _column(wanted, weight, ctx.part)
            gradient.scatter_add_(1, column[:, None], -mine.to(gradient.dtype)[:, None])
            # The gradient of a token's logits is `upstream` times this; to multiply x takes less than to multiply it.
            gradient_bias += upstream @ gradient
            gradient = gradient.to(x.dtype)
            torch.mul(gradient @ weight, upstream[:, None], out=out)
            of_piece = gradient.t() @ (piece * upstream[:, None]).to(x.dtype)
            gradient_weight = of_piece if gradient_weight is None else gradient_weight.float().add_(of_piece)
        assert gradient_weight is not None  # no tokens are one empty piece
        if ctx.part is not None:
            dist.all_reduce(gradient_x, group=ctx.part.group)
        return gradient_x.to(x.dtype), gradient_weight.to(weight.dtype), gradient_bias.to(bias.dtype), None, None, None


def _logits(x: Tensor, weight: Tensor, bias: Tensor, part: Part | None) -> Tensor:
    logits = torch.addmm(bias, x, weight.t())
    if part is not None:
        logits[:, max(0, part.words - part.first) :] = -torch.inf  # what pads the vocabulary is no word
    return logits


def _column(target: Tensor, weight: Tensor, part: Part | None) -> tuple[Tensor, Tensor]:
    """Where each target stands among this rank's words, and whether it does (True); elsewhere the column is 0."""
    if part is None:
        return target, torch.ones_like(target, dtype=torch.bool)
    column = target - part.first
    mine = (column >= 0) & (column < weight.shape[0])
    return column * mine, mine


def _join(
    log_sum: Tensor, hit: Tensor, value: Tensor, word: Tensor, part: Part | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Make the figures of a part those of the whole vocabulary; each (K,)."""
    if part is None:
        return log_sum, hit, word
    highest = torch.stack([log_sum, value])
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=part.group)
    sums = torch.stack([(log_sum - highest[0]).exp(), hit])
    dist.all_reduce(sums, group=part.group)
    # The lowest word id among equals, as argmax on one device.
    word = torch.where(value == highest[1], word + part.first, part.words)
    dist.all_reduce(word, op=dist.ReduceOp.MIN, group=part.group)
    return sums[0].log() + highest[0], sums[1], word


BACKENDS: dict[str, LinearCrossEntropy] = {
    "chunked": chunked,
    "liger": liger,
    "torch": torch_chunked,
    "plain": plain,
}


def available(device: str, split: bool = False) -> list[str]:
    """Name the backends that run on `device` ("cuda" or "cpu"), the default first; `split`: a vocabulary in parts."""
    if split:
        return ["chunked"]
    names = ["chunked"]
    if device == "cuda" and _has_liger():
        names.append("liger")
    if hasattr(F, "linear_cross_entropy"):
        names.append("torch")
    return [*names, "plain"]


def _has_liger() -> bool:
    # Older ones give no gradient for a loss per token.
    try:
        version = metadata.version("liger-kernel")
    except metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) >= (0, 8, 5)
