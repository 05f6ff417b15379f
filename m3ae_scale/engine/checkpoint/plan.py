"""Which rank writes which tensor into which file, in rounds of bounded size. Arithmetic that every rank repeats."""

import heapq
import math
from collections.abc import Mapping
from typing import NamedTuple

from m3ae_scale.engine.checkpoint.format import KINDS

FILE_BYTES = 4 * 2**30  # a file closes when it has grown past this
ROUND_BYTES = 16 * 2**20  # a writer assembles this much at a time, or one tensor that is larger
WRITER_BYTES = 16 * 2**20  # less than this is not worth another writer


class Piece(NamedTuple):
    """One whole tensor to be written."""

    kind: str
    name: str
    shape: tuple[int, ...]
    file: str

    @property
    def bytes(self) -> int:
        """Size in float32."""
        return 4 * math.prod(self.shape)


Rounds = list[list[Piece]]  # what a writer assembles and writes, round by round, in the order of its files


def share_out(
    shapes: Mapping[str, tuple[int, ...]], world: int, holders: Mapping[str, int] | None = None
) -> dict[int, Rounds]:
    """Give every (kind, parameter) to one writer: rank -> rounds. No share exceeds the average by more than a tensor.

    holders: parameter -> the rank that has most of it, and writes it where its share allows: that saves traffic.
    Writers are spread over the `world` ranks; there are fewer of them when the model is small.
    """
    pieces = [Piece(kind, name, tuple(shape), "") for kind in KINDS for name, shape in shapes.items()]
    total = sum(piece.bytes for piece in pieces)
    writers = max(1, min(world, len(pieces), math.ceil(total / WRITER_BYTES)))
    shares: dict[int, list[int]] = {index * world // writers: [] for index in range(writers)}
    loads = dict.fromkeys(shares, 0)
    rest = []
    largest_first = sorted(range(len(pieces)), key=lambda i: -pieces[i].bytes)
    for index in largest_first:
        holder = (holders or {}).get(pieces[index].name)
        if holder in shares and loads[holder] + pieces[index].bytes <= total / writers:
            shares[holder].append(index)
            loads[holder] += pieces[index].bytes
        else:
            rest.append(index)
    queue = [(load, writer) for writer, load in loads.items()]
    heapq.heapify(queue)
    for index in rest:
        load, writer = heapq.heappop(queue)
        shares[writer].append(index)
        heapq.heappush(queue, (load + pieces[index].bytes, writer))
    numbers = dict.fromkeys(KINDS, 0)
    return {
        writer: _rounds(_into_files([pieces[i] for i in sorted(share)], numbers)) for writer, share in shares.items()
    }


def _into_files(pieces: list[Piece], numbers: dict[str, int]) -> list[Piece]:
    """Name the file of each piece: one kind a file, in the model's order. `numbers` counts the files of a kind."""
    named: list[Piece] = []
    size = 0
    for piece in pieces:
        if not named or named[-1].kind != piece.kind or size > FILE_BYTES:
            numbers[piece.kind] += 1
            size = 0
        named.append(piece._replace(file=f"{piece.kind}-{numbers[piece.kind]:05d}.safetensors"))
        size += piece.bytes
    return named


def _rounds(pieces: list[Piece]) -> Rounds:
    rounds: Rounds = []
    room = 0
    for piece in pieces:
        if not rounds or piece.bytes > room:
            rounds.append([])
            room = ROUND_BYTES
        rounds[-1].append(piece)
        room -= piece.bytes
    return rounds
