"""Bidirectional attention over a packed run of tokens: each token attends to the tokens of its own sample.

Backends
  varlen      torch's flash attention on cu_seqlens (CUDA, half precision, torch >= 2.10)
  flash_attn  the flash-attn package on cu_seqlens (CUDA, half precision)
  padded      gather to a padded block, scaled_dot_product_attention with a key mask, scatter back (anywhere)
  reference   one softmax a sample, in plain arithmetic: what the others are tested against
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from m3ae_scale.batch import Stream


@dataclass(frozen=True)
class Packing:
    """Where the samples of a stream lie; made once per stream, used by every block."""

    cu_seqlens: Tensor  # (S + 1,) int32
    max_seqlen: int
    slot: Tensor  # (n,) int64: a token's place in the padded block, sample * max_seqlen + offset
    key_mask: Tensor | None  # (S, 1, 1, max_seqlen) bool, True = a real token; None when no sample is shorter


def packing_of(stream: Stream) -> Packing:
    """Describe `stream` to the attention backends."""
    samples, longest = stream.cu_seqlens.shape[0] - 1, stream.max_seqlen
    starts = stream.cu_seqlens[:-1].long()
    rows = torch.arange(stream.order.shape[0], device=stream.order.device)
    slot = stream.sample * longest + rows - starts[stream.sample]
    if stream.order.shape[0] == samples * longest:
        return Packing(stream.cu_seqlens, longest, slot, None)
    lengths = stream.cu_seqlens.diff()
    key_mask = torch.arange(longest, device=slot.device) < lengths[:, None]
    return Packing(stream.cu_seqlens, longest, slot, key_mask[:, None, None, :])


def padded(qkv: Tensor, packing: Packing) -> Tensor:
    """Attend through a padded block. qkv: (n, 3, heads, head_dim) -> (n, heads, head_dim)."""
    _, _, heads, head_dim = qkv.shape
    samples, longest = packing.cu_seqlens.shape[0] - 1, packing.max_seqlen
    if packing.key_mask is None:
        block = qkv
    else:
        block = qkv.new_zeros(samples * longest, 3, heads, head_dim).index_copy(0, packing.slot, qkv)
    q, k, v = block.view(samples, longest, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=packing.key_mask)
    flat = attended.transpose(1, 2).reshape(samples * longest, heads, head_dim)
    return flat if packing.key_mask is None else flat[packing.slot]


def varlen(qkv: Tensor, packing: Packing) -> Tensor:
    """Attend with torch's own variable-length flash attention. qkv: (n, 3, heads, head_dim)."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.unbind(1)
    cu, longest = packing.cu_seqlens, packing.max_seqlen
    attended: Tensor = varlen_attn(q, k, v, cu, cu, longest, longest)  # type: ignore[assignment]
    return attended


def flash_attn(qkv: Tensor, packing: Packing) -> Tensor:
    """Attend with the flash-attn package. qkv: (n, 3, heads, head_dim)."""
    from flash_attn import flash_attn_varlen_qkvpacked_func

    return flash_attn_varlen_qkvpacked_func(qkv, packing.cu_seqlens, packing.max_seqlen)


def reference(qkv: Tensor, packing: Packing) -> Tensor:
    """Attend sample by sample with a written-out softmax. qkv: (n, 3, heads, head_dim)."""
    bounds = packing.cu_seqlens.tolist()
    out = []
    for start, end in itertools.pairwise(bounds):
        q, k, v = qkv[start:end].permute(1, 2, 0, 3)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


AttentionFn = Callable[[Tensor, Packing], Tensor]
BACKENDS: dict[str, AttentionFn] = {
    "varlen": varlen,
    "flash_attn": flash_attn,
    "padded": padded,
    "reference": reference,
}


def available(device: str, dtype: torch.dtype) -> list[str]:
    """Name the backends that run `dtype` on `device` ("cuda" or "cpu"), fastest first."""
    names = ["padded", "reference"]
    if device == "cuda" and dtype in (torch.bfloat16, torch.float16):
        if find_spec("flash_attn") is not None:
            names.insert(0, "flash_attn")
        if find_spec("torch.nn.attention.varlen") is not None:
            names.insert(0, "varlen")
    return names
