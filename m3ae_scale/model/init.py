"""Initial values, as the reference draws them, and the same on any topology and hardware.

Each parameter is drawn whole from a CPU generator seeded by (seed, name); whoever holds a shard keeps its part.
"""

import hashlib
import math

import torch
from torch import Tensor


def draw(name: str, shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    """Draw the initial value of the parameter `name` (its whole, unsharded `shape`), float32 on the CPU.

    Words N(0, 1); linear weights Xavier uniform; CLS, mask and type embeddings N(0, 0.02); biases 0; LayerNorm
    scales 1 (m3ae_public model.py, setup).
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    if name.endswith("embed.text.weight"):
        return torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return torch.zeros(shape)
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight")) or ".norms." in name:
        return torch.ones(shape)
    if len(shape) == 2:
        bound = math.sqrt(6 / (shape[0] + shape[1]))
        return torch.empty(shape).uniform_(-bound, bound, generator=generator)
    return 0.02 * torch.randn(shape, generator=generator)


def decays(name: str) -> bool:
    """Tell whether AdamW's weight decay applies: not to biases, embeddings, CLS and mask tokens (the reference's list).

    LayerNorm scales do decay there.
    """
    undecayed = (".bias", "embed.text.weight", "cls_token", "image_mask", "text_mask", "image_type", "text_type")
    return not name.endswith(undecayed)
