"""Pixels in, pixels out: normalisation on the device, so that bytes are what travels there."""

from functools import lru_cache

import torch
from torch import Tensor

Channels = tuple[float, float, float]


def normalise(patches: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Turn uint8 patches (n, patch_dim) into float32, each channel less its mean, over its std.

    Float patches are taken as normalised already.
    """
    if patches.dtype != torch.uint8:
        return patches
    scale, shift = _affine(mean, std, patches.device)
    return (patches.view(len(patches), patches.shape[1] // 3, 3) * scale + shift).view_as(patches)


def to_bytes(patches: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Turn normalised patches (n, patch_dim) back into uint8 pixels."""
    scale, shift = _affine(mean, std, patches.device)
    pixels = (patches.float().view(len(patches), patches.shape[1] // 3, 3) - shift) / scale
    return pixels.round().clamp(0, 255).to(torch.uint8).view_as(patches)


@lru_cache(maxsize=8)
def _affine(mean: Channels, std: Channels, device: torch.device) -> tuple[Tensor, Tensor]:
    m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * s)).float().to(device), (-m / s).float().to(device)
