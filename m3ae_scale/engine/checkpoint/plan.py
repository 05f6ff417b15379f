"""Which rank writes which tensor into which file, in rounds of bounded size. Arithmetic that every rank repeats."""

import heapq
import math
from collections.abc import Mapping
from typing import NamedTuple

from m3ae_scale.engine.checkpoint.format import KINDS

FILE_BYTES = 4 * 2**30  # a file closes when it has grown past this
ROUND_BYTES = 64 * 2**20  # a writer assembles this much at a time, or one tensor that is larger
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


def share_out(shapes: Mapping[str, tuple[int, ...]], world: int) -> dict[int, Rounds]:
    """Give every (kind, parameter) to one writer; shares are balanced by bytes. Returns rank -> rounds.

    Writers are spread over the `world` ranks; there are fewer of them when the model is small.
    """
    pieces = [Piece(kind, name, tuple(shape), "") for kind in KINDS for name, shape in shapes.items()]
    total = sum(piece.bytes for piece in pieces)
    writers = max(1, min(world, len(pieces), math.ceil(total / WRITER_BYTES)))
    loads = [(0, writer) for writer in range(writers)]
    shares: list[list[int]] = [[] for _ in range(writers)]
    for index in sorted(range(len(pieces)), key=lambda i: -pieces[i].bytes):  # the largest first
        load, writer = heapq.heappop(loads)
        shares[writer].append(index)
        heapq.heappush(loads, (load + pieces[index].bytes, writer))
    numbers = dict.fromkeys(KINDS, 0)
    return {
        writer * world // writers: _rounds(_into_files([pieces[i] for i in sorted(share)], numbers))
        for writer, share in enumerate(shares)
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
