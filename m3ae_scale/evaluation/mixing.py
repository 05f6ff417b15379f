"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) between neighbours of a batch.

Samples 2k and 2k + 1 of the global batch are mixed with each other, by one draw from (seed, epoch, step, k): the
result does not depend on how the batch is dealt to ranks.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from m3ae_scale.data.rng import stream


@dataclass(frozen=True)
class Mixing:
    """Strengths: the parameter of each Beta distribution; 0 turns one off. With both, each takes half of the pairs."""

    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1  # of labels


def shares(pairs: range, size: int, mixing: Mixing, *identity: str | int) -> Tensor:
    """Draw what each pair keeps of its own image: (len(pairs), size, size) float32, 0 to 1.

    Mixup keeps one share everywhere; CutMix keeps all but a box, whose area is 1 - share before it is clipped.
    """
    kept = np.ones((len(pairs), size, size), np.float32)
    for row, pair in enumerate(pairs):
        rng = stream(*identity, pair, "mix")
        cut = mixing.cutmix > 0 and (mixing.mixup == 0 or rng.random() < 0.5)
        if cut:
            side = size * np.sqrt(1 - rng.beta(mixing.cutmix, mixing.cutmix))
            x, y = rng.random(2) * size
            left, right, top, bottom = (
                int(np.clip(edge, 0, size)) for edge in (x - side / 2, x + side / 2, y - side / 2, y + side / 2)
            )
            kept[row, top:bottom, left:right] = 0
        elif mixing.mixup > 0:
            kept[row] = rng.beta(mixing.mixup, mixing.mixup)
    return torch.from_numpy(kept)


def mix(images: Tensor, labels: Tensor, kept: Tensor, classes: int, smoothing: float) -> tuple[Tensor, Tensor]:
    """Mix neighbours.

    images: (S, H, W, 3) float; labels: (S,); kept: (S / 2, H, W), what each keeps of its own.
    Returns the images, and the targets (S, classes): smoothed labels in the shares that the pixels have.
    """
    own = kept.repeat_interleave(2, 0)[..., None]
    mixed = own * images + (1 - own) * _neighbours(images)
    target = F.one_hot(labels, classes).float() * (1 - smoothing) + smoothing / classes
    share = own.mean((1, 2))
    return mixed, share * target + (1 - share) * _neighbours(target)


def _neighbours(x: Tensor) -> Tensor:
    return x.view(len(x) // 2, 2, *x.shape[1:]).flip(1).view_as(x)


def to_images(patches: Tensor, grid: int, patch: int) -> Tensor:
    """Put patches (S * grid * grid, patch * patch * 3) together: (S, H, W, 3)."""
    x = patches.view(-1, grid, grid, patch, patch, 3).transpose(2, 3)
    return x.reshape(-1, grid * patch, grid * patch, 3)


def to_patches(images: Tensor, grid: int, patch: int) -> Tensor:
    """Cut (S, H, W, 3) into patches (S * grid * grid, patch * patch * 3), as data/augment.py does."""
    x = images.view(-1, grid, patch, grid, patch, 3).transpose(2, 3)
    return x.reshape(-1, patch * patch * 3)
