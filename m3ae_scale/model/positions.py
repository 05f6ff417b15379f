"""Fixed sin-cos positions (paper, section 3.1; m3ae_public get_{1,2}d_sincos_pos_embed).

The tables are functions, not buffers: nothing to save, to shard, or to round when a module changes precision.
"""

from functools import lru_cache

import torch
from torch import Tensor


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Embed 1-D `positions` (n,) as (n, dim): sines in the first half, cosines in the second."""
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.double()[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def sincos_2d(dim: int, grid: int) -> Tensor:
    """Embed the cells of a `grid` x `grid` image, row-major, as (grid * grid, dim): column first, then row."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    return torch.cat([sincos_1d(dim // 2, column.flatten()), sincos_1d(dim // 2, row.flatten())], dim=1)


@lru_cache(maxsize=8)
def position_table(dim: int, grid: int, words: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """All positions a token can have, (1 + grid * grid + words, dim): CLS (zeros), image cells, words."""
    rows = [torch.zeros(1, dim, dtype=torch.float64), sincos_2d(dim, grid), sincos_1d(dim, torch.arange(words))]
    return torch.cat(rows).to(dtype).to(device)
