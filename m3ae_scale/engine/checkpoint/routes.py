"""Which rank holds which elements of a parameter, and so who sends what to its writer.

A whole tensor is cut twice: by tensor parallelism into parts (parallel/shard.py), and each part, flattened, by ZeRO
into fragments over the data-parallel ranks.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist

from m3ae_scale.engine.checkpoint.state import Held
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.parallel.topology import Topology


class Leg(NamedTuple):
    """A run of elements on its way: `length` from `start` of a flattened part, taken from what `source` holds."""

    source: int  # rank
    start: int
    length: int
    skip: int  # elements of the source's fragment before these


class Routes:
    """Knows which rank holds what, and so how each tensor comes together at its writer."""

    def __init__(self, held: list[Held], groups: Groups):
        self._topology = groups.topology
        self._places = {h.name: index for index, h in enumerate(held)}
        self._parts = [(torch.Size(h.part_shape).numel(), h.shard is not None) for h in held]
        mine = torch.tensor([(h.start, h.count) for h in held], device=groups.device)
        everyone = [torch.empty_like(mine) for _ in range(groups.topology.world)]
        dist.all_gather(everyone, mine)
        self._ranges = [each.tolist() for each in everyone]
        self.to = lru_cache(maxsize=None)(self._to)

    def holders(self) -> dict[str, int]:
        """Map parameters to the rank that holds most of them; those that many hold equally are left out."""
        found = {}
        for name, place in self._places.items():
            counts = [ranges[place][1] for ranges in self._ranges]
            most = [rank for rank, count in enumerate(counts) if count == max(counts)]
            if len(most) <= self._topology.tensor:  # the same share of each tensor-parallel part
                found[name] = most[place % len(most)]
        return found

    def _to(self, name: str, writer: int) -> list[list[Leg]]:
        """Return the legs of each tensor-parallel part of parameter `name` to rank `writer`."""
        place, topology = self._places[name], self._topology
        length, split = self._parts[place]
        # A parameter that is not split is whole on every tensor-parallel rank: the writer's own saves traffic.
        tensor_ranks = range(topology.tensor) if split else [topology.tensor_rank(writer)]
        parts = []
        for tensor_rank in tensor_ranks:
            ranges = [(rank, *self._ranges[rank][place]) for rank in topology.data_group(tensor_rank)]
            parts.append(cover(ranges, length, prefer=_nearest(topology, writer, tensor_rank)))
        return parts


def cover(ranges: list[tuple[int, int, int]], length: int, prefer: int) -> list[Leg]:
    """Choose from `ranges` (rank, start, count) legs that cover 0 .. length once; of equals, rank `prefer`'s."""
    legs, done = [], 0
    for rank, start, count in sorted(ranges, key=lambda r: (r[1], r[0] != prefer, r[0])):
        if start > done:
            break
        if start + count > done:
            legs.append(Leg(rank, done, start + count - done, skip=done - start))
            done = start + count
    if done != length:
        raise RuntimeError(f"elements {done} to {length} of a parameter are on no rank")
    return legs


def _nearest(topology: Topology, writer: int, tensor_rank: int) -> int:
    return topology.data_rank(writer) * topology.tensor + tensor_rank
