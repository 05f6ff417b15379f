"""Deals a global batch into the micro-batches of all ranks: the same deal on every rank, none of them empty."""

import heapq

import numpy as np
from numpy.typing import NDArray

from m3ae_scale.data.order import Integers


def deal_by_count(batch: int, world: int, accumulation: int) -> list[list[Integers]]:
    """Return [rank][micro-batch] -> the numbers in the global batch, all of them equally many.

    Rank r takes r, r + world, r + 2 world, ...: whole lanes of the order when `world` divides their number.
    batch: samples of the global batch, a multiple of world x accumulation.
    """
    numbers = np.arange(batch).reshape(accumulation, -1, world)
    return [[numbers[a, :, rank] for a in range(accumulation)] for rank in range(world)]


def deal_by_tokens(tokens: NDArray[np.int64], world: int, accumulation: int) -> list[list[Integers]]:
    """Return [rank][micro-batch] -> the numbers in the global batch, all with about as many tokens.

    The largest samples go first, each to the micro-batch that has fewest tokens (Graham 1969), so two micro-batches
    differ by no more than one sample. A rank then reads from all lanes.
    tokens: (batch,) of each sample, at least world x accumulation samples.
    """
    bins: list[list[int]] = [[] for _ in range(world * accumulation)]
    loads = [(0, b) for b in range(len(bins))]
    for number in np.argsort(-tokens, kind="stable").tolist():
        load, b = heapq.heappop(loads)
        bins[b].append(number)
        heapq.heappush(loads, (load + int(tokens[number]), b))
    return [[np.sort(np.array(bins[a * world + rank])) for a in range(accumulation)] for rank in range(world)]
