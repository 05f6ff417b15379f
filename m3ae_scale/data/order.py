"""The one global order: which sample stands at position p of the endless stream, for any p, without replay.

The order is a function of (samples per shard, weights, seed, lanes, shuffle block). World size, workers, batch size and
what was read before do not enter it: step t of a run with global batch B takes positions [tB, (t + 1)B), and rank r of
W takes every W-th of them. How position p finds its sample:

1. **Lane.** The stream is dealt into L lanes like cards: lane = p mod L, row = p div L. When W divides L, the
   positions of a rank are whole lanes; for another W the batches are the same, only the reading is less local.
2. **Source.** A table of R rows x L lanes, repeated for ever, names the source of every position. It is an earliest-
   deadline-first schedule of the weights, in integers, cut into rows; then each row is shuffled, so that no rank sees
   one source only because the weights and W happen to share a divisor. After any number of whole rows, each source
   has its share to within 1; inside a row, to within 1 + L x share x (1 - share), at most 1 + L / 4.
3. **Epoch of the source.** The table is periodic, so "how many positions before p belong to source s" and "where is
   the n-th position of source s" are sums, not loops. With N samples, epoch e of a source is its n-th positions with
   eN <= n < (e + 1)N: each source has its own epoch, and each sample stands in it exactly once.
4. **Line.** In each epoch the shards of a source are permuted and laid end to end: a line of N samples. The line is
   cut into L pieces, one a lane, each as long as the number of positions that the lane has in this epoch (again a sum).
   A lane walks its piece front to back: it reads its own shards, in order. (A shard on a cut belongs to two lanes;
   there are at most L - 1 of those. A source with fewer shards than lanes is cut just the same.)
5. **Shuffle.** The line is divided into blocks of `block` neighbours, and each block is permuted. A lane thus reads
   block after block; a source smaller than one block is shuffled as a whole.

A permutation is the argsort of a 64-bit hash (splitmix64) of (seed, source, epoch, block, element), so it does not
depend on a library's random generator. Memory: the table, and for each source the shard order of the epochs at hand.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_LARGEST_TOTAL = 2**16  # weights are exact fractions of their sum up to this denominator, and rounded to it beyond
_SHUFFLES = 10  # different shuffles of a row in the table, at least


@dataclass(frozen=True)
class Places:
    """Where n samples lie; the four arrays are (n,) int64."""

    source: Integers  # number of the source
    epoch: Integers  # epoch of that source
    shard: Integers  # number of the shard in the source
    index: Integers  # number of the sample in the shard


class Order:
    """The global order of a mixture.

    counts: for each source, the (shards,) number of samples in each shard.
    weights: for each source, its share of the stream, relative to the others.
    lanes: L, part of the order; a multiple of the data-parallel sizes in use keeps ranks on shards of their own.
    block: neighbours that are shuffled together.
    """

    def __init__(self, counts: list[Integers], weights: list[float], seed: int, lanes: int = 24, block: int = 2048):
        self.counts = [np.asarray(c, dtype=np.int64) for c in counts]
        self.samples = [int(c.sum()) for c in self.counts]
        if not all(self.samples):
            raise ValueError("each source needs at least one sample")
        self.seed, self.lanes, self.block = seed, lanes, block
        self.mixture = Mixture(weights, seed, lanes)
        # Bounded caches: the epochs at hand, and the blocks that the lanes are walking through.
        self._epoch = lru_cache(maxsize=2 * len(counts) + 2)(self._lay_out_epoch)
        self._shuffled = lru_cache(maxsize=2 * lanes * len(counts) + 2)(self._shuffle_block)

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Pickle the definition; the caches fill again."""
        return Order, (self.counts, self.mixture.weights, self.seed, self.lanes, self.block)

    def locate(self, positions: Integers) -> Places:
        """Return the places of `positions` (n,), in O(n log shards) whatever their size."""
        positions = np.asarray(positions, dtype=np.int64)
        source, lane, in_lane, nth = self.mixture.locate(positions)
        epoch = nth // np.asarray(self.samples)[source]
        offset = np.empty_like(positions)
        shard, index = np.empty_like(positions), np.empty_like(positions)
        for s, e in sorted(set(zip(source.tolist(), epoch.tolist(), strict=True))):
            here = (source == s) & (epoch == e)
            line = self._epoch(s, e)
            offset[here] = line.lane_start[lane[here]] + in_lane[here] - line.lane_before[lane[here]]
            offset[here] = self._shuffle(s, e, offset[here])
            shard[here], index[here] = line.shard_of(offset[here])
        return Places(source, epoch, shard, index)

    def substitute(self, position: int, attempt: int) -> Places:
        """Return the place that stands in for `position` at the given attempt (1, 2, ...).

        It is a pseudo-random sample of the same source and epoch, the same whatever the world size. Early attempts
        stay within the shuffle block, so that a rank keeps to its shards; later ones take the whole source, because
        the block may lie in one broken shard.
        """
        source, lane, in_lane, nth = (int(x[0]) for x in self.mixture.locate(np.array([position])))
        samples = self.samples[source]
        epoch = nth // samples
        line = self._epoch(source, epoch)
        first, size = 0, samples
        if attempt <= ATTEMPTS_IN_BLOCK:
            offset = int(line.lane_start[lane]) + in_lane - int(line.lane_before[lane])
            first = offset // self.block * self.block
            size = min(self.block, samples - first)
        pick = first + _hash(self.seed, _SUBSTITUTE, position, attempt) % size
        shard, index = line.shard_of(np.array([pick]))
        return Places(np.array([source]), np.array([epoch]), shard, index)

    def _lay_out_epoch(self, source: int, epoch: int) -> "_Line":
        samples, mixture = self.samples[source], self.mixture
        begin = mixture.lane_counts(source, mixture.position(source, epoch * samples))
        end = mixture.lane_counts(source, mixture.position(source, (epoch + 1) * samples))
        counts = self.counts[source]
        shards = permutation(len(counts), self.seed, _SHARDS, source, epoch)
        return _Line(
            lane_before=begin,
            lane_start=_starts(end - begin),
            shards=shards,
            shard_start=_starts(counts[shards]),
        )

    def _shuffle(self, source: int, epoch: int, offsets: Integers) -> Integers:
        shuffled = np.empty_like(offsets)
        blocks = offsets // self.block
        for b in np.unique(blocks).tolist():
            here = blocks == b
            first = b * self.block
            shuffled[here] = first + self._shuffled(source, epoch, b)[offsets[here] - first]
        return shuffled

    def _shuffle_block(self, source: int, epoch: int, number: int) -> Integers:
        size = min(self.block, self.samples[source] - number * self.block)
        return permutation(size, self.seed, _BLOCK, source, epoch, number)


ATTEMPTS_IN_BLOCK = 8


@dataclass(frozen=True)
class _Line:
    """One epoch of one source: its shards laid end to end, and the piece of each lane."""

    lane_before: Integers  # (lanes,) positions of the lane before this epoch
    lane_start: Integers  # (lanes,) where the lane's piece of the line begins
    shards: Integers  # (shards,) in the order of the line
    shard_start: Integers  # (shards,) where each of them begins

    def shard_of(self, offsets: Integers) -> tuple[Integers, Integers]:
        """Return shard numbers and the indices inside them, for offsets on the line."""
        # "right": of several shards that begin here, all but the last are empty.
        at = np.searchsorted(self.shard_start, offsets, side="right") - 1
        return self.shards[at], offsets - self.shard_start[at]


class Mixture:
    """Which source each position belongs to: the table of steps 2 and 3 above, with its sums."""

    def __init__(self, weights: list[float], seed: int, lanes: int):
        self.weights, self.lanes = list(weights), lanes
        shares = integer_shares(weights)
        total = sum(shares)
        rows = total // gcd(total, lanes)  # the fewest rows that hold whole schedules
        if len(shares) > 1:
            rows *= -(-_SHUFFLES * lanes // rows)
        table = np.tile(schedule(shares), rows * lanes // total).reshape(rows, lanes)
        for row in range(rows) if len(shares) > 1 else ():
            # A new shuffle for every L rows, turned by one lane a row: in these a lane has each place of the row once.
            table[row] = np.roll(table[row][permutation(lanes, seed, _ROW, row // lanes)], row)
        self.table = table  # (rows, lanes): the source of each position of a period
        self.period = rows * lanes
        member = table[None] == np.arange(len(shares))[:, None, None]
        # (sources, rows + 1, lanes): positions of the source in the lane before each row
        self.before = np.zeros((len(shares), rows + 1, lanes), dtype=np.int32)
        np.cumsum(member, axis=1, out=self.before[:, 1:])
        self.slots = [np.flatnonzero(m) for m in member]  # for each source, its positions in a period, ascending

    def locate(self, positions: Integers) -> tuple[Integers, Integers, Integers, Integers]:
        """Return (source, lane, earlier positions of that source in that lane, earlier positions of that source)."""
        period, rest = np.divmod(positions, self.period)
        row, lane = np.divmod(rest, self.lanes)
        source = self.table[row, lane]
        in_lane = period * self.before[source, -1, lane] + self.before[source, row, lane]
        nth = np.empty_like(positions)
        for s in np.unique(source):
            here = source == s
            nth[here] = period[here] * len(self.slots[s]) + np.searchsorted(self.slots[s], rest[here])
        return source, lane, in_lane, nth

    def position(self, source: int, nth: int) -> int:
        """Return the position of the n-th sample (from 0) that the stream takes from `source`."""
        period, rest = divmod(nth, len(self.slots[source]))
        return period * self.period + int(self.slots[source][rest])

    def lane_counts(self, source: int, position: int) -> Integers:
        """Return (lanes,): how many positions of `source` each lane has before `position`."""
        period, rest = divmod(position, self.period)
        row, lane = divmod(rest, self.lanes)
        partial = (self.table[row] == source) & (np.arange(self.lanes) < lane)
        counts: Integers = period * self.before[source, -1].astype(np.int64) + self.before[source, row] + partial
        return counts


def integer_shares(weights: list[float]) -> list[int]:
    """Return the smallest integers in proportion to `weights`, which are rounded to 1 / 65536 of the sum if need be."""
    exact = [Fraction(str(w)) for w in weights]
    scale = lcm(*(w.denominator for w in exact))
    shares = [int(w * scale) for w in exact]
    total = sum(shares)
    if total // gcd(*shares) > _LARGEST_TOTAL:
        ideal = [Fraction(s * _LARGEST_TOTAL, total) for s in shares]
        shares = [max(1, int(x)) for x in ideal]
        # Largest remainders first, until the sum fits; a share that was raised to 1 has a negative remainder.
        while (missing := _LARGEST_TOTAL - sum(shares)) != 0:
            sign = 1 if missing > 0 else -1
            candidates = [i for i in range(len(shares)) if shares[i] + sign > 0]
            chosen = max(candidates, key=lambda i: sign * (ideal[i] - shares[i]))
            shares[chosen] += sign
    divisor = gcd(*shares)
    return [s // divisor for s in shares]


def schedule(shares: list[int]) -> Integers:
    """Return (sum of shares,) source numbers in which every prefix holds each source's share to within 1.

    The j-th turn of a source (from 0) may come once j < share of the slots so far + 1, and must come before its share
    reaches j + 1. Taking the earliest deadline among those that may come meets all of them (Tijdeman 1980, the
    chairman assignment problem: a schedule within 1 exists; earliest deadline first finds one if there is one).
    """
    total = sum(shares)
    taken = [0] * len(shares)
    slots = np.empty(total, dtype=np.int64)
    for slot in range(total):
        ready = [s for s, share in enumerate(shares) if taken[s] * total // share <= slot and taken[s] < share]
        chosen = min(ready, key=lambda s: -(-(taken[s] + 1) * total // shares[s]))
        slots[slot] = chosen
        taken[chosen] += 1
    return slots


def permutation(size: int, *key: int) -> Integers:
    """Return a permutation of range(size) that is a function of `key` alone."""
    numbers = np.arange(size, dtype=np.uint64) + np.uint64(_hash(*key))
    return np.argsort(_splitmix64(numbers), kind="stable")


_SHARDS, _BLOCK, _ROW, _SUBSTITUTE = 1, 2, 3, 4  # what a hash is for: the same numbers give unrelated hashes


def _hash(*key: int) -> int:
    state = np.zeros(1, dtype=np.uint64)
    for number in key:
        state = _splitmix64(state ^ np.uint64(number % 2**64))
    return int(state[0])


def _splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Steele, Lea & Flood 2014: a bijection of 64-bit numbers that looks random."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _starts(lengths: Integers) -> Integers:
    return np.cumsum(lengths) - lengths
