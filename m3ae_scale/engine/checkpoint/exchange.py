"""Whole tensors out of fragments: in each round, one all-to-all brings the writers what other ranks hold."""

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from m3ae_scale.engine.build import Built
from m3ae_scale.engine.checkpoint.plan import Piece, Rounds
from m3ae_scale.engine.checkpoint.routes import Leg, Routes
from m3ae_scale.engine.checkpoint.state import Held, fragment
from m3ae_scale.parallel.groups import Groups


def whole_tensors(
    built: Built, held: list[Held], shares: Mapping[int, Rounds], routes: Routes, groups: Groups
) -> Iterator[tuple[Piece, Tensor]]:
    """Yield the tensors that this rank has to write, one after the other, whole and on the host. Collective.

    Every rank must take all of its own, since the exchanges lie in between.
    """
    by_name = {h.name: h for h in held}
    for index in range(max(len(rounds) for rounds in shares.values())):
        due = {writer: rounds[index] if index < len(rounds) else [] for writer, rounds in sorted(shares.items())}
        received = _exchange(built, by_name, due, routes, groups)
        for piece in due.get(groups.rank, []):
            yield piece, _assemble(built, by_name[piece.name], piece, routes, groups.rank, received)


def _exchange(
    built: Built, by_name: dict[str, Held], due: dict[int, list[Piece]], routes: Routes, groups: Groups
) -> dict[int, Tensor]:
    """Send what this rank holds of the round's tensors to their writers; returns what came, by source rank."""
    outgoing: list[Tensor] = []
    sent, expected, traffic = [0] * groups.topology.world, [0] * groups.topology.world, False
    for writer, pieces in due.items():
        for piece in pieces:
            for leg in (leg for legs in routes.to(piece.name, writer) for leg in legs if leg.source != writer):
                traffic = True
                if leg.source == groups.rank:
                    outgoing.append(_taken(built, by_name[piece.name], piece, leg))
                    sent[writer] += leg.length
                if writer == groups.rank:
                    expected[leg.source] += leg.length
    if not traffic:  # on any rank: everyone has come to the same answer
        return {}
    device = groups.device
    sending = torch.cat([values.to(device, torch.float32) for values in outgoing] or [torch.empty(0, device=device)])
    receiving = torch.empty(sum(expected), device=device)
    dist.all_to_all_single(receiving, sending, expected, sent)
    return dict(enumerate(receiving.cpu().split(expected)))


def _taken(built: Built, held: Held, piece: Piece, leg: Leg) -> Tensor:
    """Return the elements of `leg` out of what this rank holds."""
    return fragment(built, held, piece.kind)[leg.skip : leg.skip + leg.length]


def _assemble(built: Built, held: Held, piece: Piece, routes: Routes, rank: int, received: dict[int, Tensor]) -> Tensor:
    """Put one tensor together, from what `rank`, this one, holds and off the front of what was received."""
    parts = []
    for legs in routes.to(piece.name, rank):
        flat = torch.empty(torch.Size(held.part_shape).numel())
        for leg in legs:
            place = flat[leg.start : leg.start + leg.length]
            if leg.source == rank:
                place.copy_(_taken(built, held, piece, leg))
            else:
                place.copy_(received[leg.source][: leg.length])
                received[leg.source] = received[leg.source][leg.length :]
        parts.append(flat.view(held.part_shape))
    return parts[0] if held.shard is None else held.shard.join(parts)
