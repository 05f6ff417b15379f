"""How a whole tensor is split over tensor-parallel ranks: the one rule for initial values, checkpoints and tests."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shard:
    """A split along dimension 0 or 1: `blocks` equal parts of it (q, k, v) are each cut into one piece a rank."""

    dim: int
    length: int  # of the whole tensor along `dim`
    blocks: int = 1

    def part(self, whole: Tensor, rank: int, world: int) -> Tensor:
        """Cut rank's part out of `whole`; a length that does not divide is padded with zeros (a vocabulary's end)."""
        blocks = whole.unflatten(self.dim, (self.blocks, -1)).movedim(self.dim + 1, 0)
        piece = -(-blocks.shape[0] // world)
        mine = blocks[rank * piece : (rank + 1) * piece]
        if mine.shape[0] < piece:
            mine = torch.cat([mine, mine.new_zeros(piece - mine.shape[0], *mine.shape[1:])])
        return mine.movedim(0, self.dim + 1).flatten(self.dim, self.dim + 1).contiguous()

    def join(self, parts: list[Tensor]) -> Tensor:
        """Put the parts of all ranks, in rank order, together again."""
        blocks = [p.unflatten(self.dim, (self.blocks, -1)) for p in parts]
        whole = torch.cat(blocks, dim=self.dim + 1).narrow(self.dim + 1, 0, self.length // self.blocks)
        return whole.flatten(self.dim, self.dim + 1).contiguous()


def mark(parameter: nn.Parameter, shard: Shard) -> None:
    """Note on `parameter` that it is one part of a whole, for the engine, the checkpoint and the gradient norm."""
    parameter.shard = shard  # type: ignore[attr-defined]
    # DeepSpeed and megatron-core each ask by their own name when they count a norm over ranks.
    parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
    parameter.model_parallel = True  # type: ignore[attr-defined]


def shard_of(parameter: nn.Parameter) -> Shard | None:
    """Return how `parameter` is split, or None for one that every rank holds whole."""
    return getattr(parameter, "shard", None)


def whole_shape(parameter: nn.Parameter, local_shape: torch.Size) -> tuple[int, ...]:
    """Return the unsplit shape of `parameter`, whose part on this rank has `local_shape`."""
    shape = list(local_shape)
    shard = shard_of(parameter)
    if shard is not None:
        shape[shard.dim] = shard.length
    return tuple(shape)
