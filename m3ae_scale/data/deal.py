"""Deals the global batches to ranks and micro-batches: the same deal on every rank, in which each has its place."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from m3ae_scale.data.order import Integers


@dataclass(frozen=True)
class Plan:
    """Which positions of the order make up micro-batch m of a rank: a function of m, so that a run can begin at any.

    by: "count": all micro-batches have equally many samples; "tokens": about equally many tokens; "evenly": as many
    samples as can be, for a batch that does not divide by world x accumulation.
    """

    batch: int  # samples of a global batch
    rank: int
    world: int
    accumulation: int  # micro-batches a step
    by: Literal["count", "tokens", "evenly"]
    origin: int = 0  # position of step 0; not 0 when the run resumed with another global batch

    def step_of(self, number: int) -> int:
        """Return the step that micro-batch `number` belongs to."""
        return number // self.accumulation

    def positions(self, number: int, tokens_of: Callable[[Integers], Integers]) -> Integers:
        """Return the positions in micro-batch `number`; tokens_of tells the tokens at positions (n,)."""
        step, part = divmod(number, self.accumulation)
        batch = self.origin + step * self.batch + np.arange(self.batch)
        if self.by == "tokens":
            return batch[deal_by_tokens(tokens_of(batch), self.world, self.accumulation)[self.rank][part]]
        # Rank r takes r, r + world, r + 2 world, ...: whole lanes of the order when `world` divides their number.
        mine = batch[self.rank :: self.world]
        return np.array_split(mine, self.accumulation)[part]


def deal_by_tokens(tokens: Integers, world: int, accumulation: int) -> list[list[Integers]]:
    """Return [rank][micro-batch] -> the numbers in the global batch, all with about as many tokens.

    The largest samples go first, each to the micro-batch that has fewest tokens (Graham 1969), so two micro-batches
    differ by no more than the largest sample. A rank then reads from all lanes.
    tokens: (batch,) of each sample, positive; at least world x accumulation of them, so that no micro-batch is empty.
    """
    bins: list[list[int]] = [[] for _ in range(world * accumulation)]
    loads = [(0, b) for b in range(len(bins))]
    for number in np.argsort(-tokens, kind="stable").tolist():
        load, b = heapq.heappop(loads)
        bins[b].append(number)
        heapq.heappush(loads, (load + int(tokens[number]), b))
    return [[np.sort(np.array(bins[a * world + rank])) for a in range(accumulation)] for rank in range(world)]
