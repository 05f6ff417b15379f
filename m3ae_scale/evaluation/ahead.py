"""Samples prepared in threads, a few ahead of what takes them: decoding and resizing leave Python's lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Item = TypeVar("Item")


def ahead(work: Callable[[Item], T], items: Iterable[Item], ranks: int) -> Iterator[T]:
    """Yield `work` of each item, in order. ranks: how many processes share the cores of this machine."""
    threads = max(1, len(os.sched_getaffinity(0)) // ranks)
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as workers:
        for item in items:
            waiting.append(workers.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
