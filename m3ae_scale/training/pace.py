"""Which rank holds the others up.

All ranks of a step end together, so a slow one must be found by what only it does: waiting for its data, and taking
longer than the others for a fixed piece of work.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from m3ae_scale.parallel.groups import Groups

_FACTOR = 1.5  # so many times the median of all ranks is slow
_SHARE = 0.05  # of a step: a longer wait for data than this is worth a word
_TWICE = 2  # reports in a row: one may be chance


class Pace:
    """Measures this rank, and at each report names the ranks that are slower than the others."""

    def __init__(self, groups: Groups):
        """Collective: the ranks tell each other their hosts."""
        self._groups, self._waited, self._done = groups, 0.0, 0
        world = groups.topology.world
        self._hosts: list[str] = [""] * world
        dist.all_gather_object(self._hosts, os.uname().nodename)
        self._streaks: dict[tuple[str, int], int] = {}  # (what, rank) -> reports in a row in which it was slow

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def report(self, done: int, step_seconds: float) -> tuple[dict[str, float], list[str]]:
        """Compare the ranks since the last report; every rank must call it after the same number of steps, `done`.

        step_seconds: how long a step takes.

        Returns the measured values (seconds: data_wait_seconds and data_wait_seconds_max a step over the ranks,
        work_seconds_median and work_seconds_max of the fixed piece of work), and a line for each slow rank.
        """
        # Only the first rank of a tensor-parallel group reads; the others wait for it.
        waited = self._waited / max(done - self._done, 1) if self._groups.tensor_rank == 0 else float("nan")
        self._waited, self._done = 0.0, done
        mine = torch.tensor(
            [waited, work_seconds(self._groups.device)], dtype=torch.float64, device=self._groups.device
        )
        gathered = [torch.empty_like(mine) for _ in self._hosts]
        dist.all_gather(gathered, mine)
        waits, works = torch.stack(gathered).T.cpu()
        read = waits[~waits.isnan()]
        values = {
            "data_wait_seconds": float(read.mean()),
            "data_wait_seconds_max": float(read.max()),
            "work_seconds_median": float(works.median()),
            "work_seconds_max": float(works.max()),
        }
        slow = {("data", rank): waits for rank in slow_ranks(waits.nan_to_num(), floor=_SHARE * step_seconds)}
        slow |= {("work", rank): works for rank in slow_ranks(works, floor=0.0)}
        self._streaks = {key: self._streaks.get(key, 0) + 1 for key in slow}
        return values, [self._line(*key, slow[key]) for key, streak in self._streaks.items() if streak == _TWICE]

    def _line(self, what: str, rank: int, seconds: torch.Tensor) -> str:
        mine, others = float(seconds[rank]), float(seconds[~seconds.isnan()].median())
        name = f"rank {rank} on {self._hosts[rank]}"
        if what == "data":
            return f"slow: {name} waits {mine:.3g} s a step for its data, the median rank {others:.3g} s"
        return f"slow: {name} takes {mine / others:.1f} times as long as the median rank for the same piece of work"


def slow_ranks(seconds: torch.Tensor, floor: float) -> list[int]:
    """Return the ranks past 1.5 times the median of all and more than `floor` seconds above it."""
    median = seconds.median()  # the lower one of two: of a pair the faster
    return torch.nonzero((seconds > _FACTOR * median) & (seconds - median > floor)).flatten().tolist()


def work_seconds(device: torch.device, size: int = 384, repeats: int = 3) -> float:
    """Return the shortest time of `repeats` matrix products on `device`."""
    x = torch.ones(size, size, device=device)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        (x @ x).sum().item()  # waits for the device
        times.append(time.perf_counter() - began)
    return min(times)
