"""Whole tensors out of fragments: in each round every rank sends what it holds to those who will write it.

A whole tensor is cut twice: by tensor parallelism into parts (parallel/shard.py), and each part, flattened, by ZeRO
into fragments over the data-parallel ranks. One all-to-all a round puts both together again.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from m3ae_scale.engine.build import Built
from m3ae_scale.engine.checkpoint.plan import Piece, Rounds
from m3ae_scale.engine.checkpoint.state import Held, moment
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.parallel.topology import Topology


class Leg(NamedTuple):
    """A run of elements on its way: `length` from `start` of a flattened part, taken from what `source` holds."""

    source: int  # rank
    start: int
    length: int
    skip: int  # elements of the source's fragment before these


def whole_tensors(
    built: Built, held: list[Held], shares: Mapping[int, Rounds], groups: Groups
) -> Iterator[list[tuple[Piece, Tensor]]]:
    """Yield, round by round, the tensors that this rank has to write, whole and on the host. Collective.

    Each rank gets the same number of rounds, some of them empty, and must take them all.
    """
    by_name = {h.name: h for h in held}
    routes = Routes(held, groups)
    for index in range(max(len(rounds) for rounds in shares.values())):
        due = {writer: rounds[index] if index < len(rounds) else [] for writer, rounds in sorted(shares.items())}
        outgoing: list[Tensor] = []
        sent, expected = [0] * groups.topology.world, [0] * groups.topology.world
        for writer, pieces in due.items():
            for piece in pieces:
                for leg in (leg for legs in routes.to(piece.name, writer) for leg in legs):
                    if leg.source == groups.rank:
                        fragment = moment(built, by_name[piece.name], piece.kind)
                        outgoing.append(fragment[leg.skip : leg.skip + leg.length])
                        sent[writer] += leg.length
                    if writer == groups.rank:
                        expected[leg.source] += leg.length
        received = _all_to_all(outgoing, sent, expected, groups)
        del outgoing
        yield [
            (piece, _assemble(by_name[piece.name], routes.to(piece.name, groups.rank), received))
            for piece in due.get(groups.rank, [])
        ]


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


def _all_to_all(outgoing: list[Tensor], sent: list[int], expected: list[int], groups: Groups) -> list[Tensor]:
    """Exchange fragments; returns what came from each rank, on the host."""
    device = groups.device
    sending = torch.cat([fragment.to(device, torch.float32) for fragment in outgoing]) if outgoing else None
    if sending is None:
        sending = torch.empty(0, device=device)
    if groups.topology.world == 1:
        return [sending.cpu()]
    receiving = torch.empty(sum(expected), device=device)
    dist.all_to_all_single(receiving, sending, expected, sent)
    return list(receiving.cpu().split(expected))


def _assemble(held: Held, parts: list[list[Leg]], received: list[Tensor]) -> Tensor:
    """Take the legs of one tensor off the front of what was received, and put them together."""
    flat_parts = []
    for legs in parts:
        flat = torch.empty(torch.Size(held.part_shape).numel())
        for leg in legs:
            flat[leg.start : leg.start + leg.length] = received[leg.source][: leg.length]
            received[leg.source] = received[leg.source][leg.length :]
        flat_parts.append(flat.view(held.part_shape))
    return flat_parts[0] if held.shard is None else held.shard.join(flat_parts)
