"""A run that hangs ends: each rank writes its stacks and where it was, and exits, so that the job can begin again.

Collective calls wait for the slowest rank without end, and a device or a file system that is gone raises nothing. The
loop says where it is; when it has said nothing for too long, a thread writes what every thread of the process is doing.
Each rank says the same places in the same order, so the one that has said the fewest is the one the others wait for.
"""

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from m3ae_scale.errors import EXIT_HUNG

_OTHERS = 10.0  # seconds at most that the ranks have to write after the first has seen the hang
_BACKSTOP = 60.0  # seconds after which a thread that needs no interpreter ends a process whose interpreter is held


class Watch:
    """Watches over one rank: once entered, it expects `at` to be called at least every `hang_after` seconds."""

    def __init__(self, folder: Path, rank: int, hang_after: float):
        """folder: takes a file of each rank that hangs, rank_00000.txt, and must be one for all ranks."""
        self._folder, self._rank, self._hang_after = folder, rank, hang_after
        self._count, self._place, self._since = 0, "starting", time.monotonic()
        self._armed = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def at(self, place: str) -> None:
        """Say what comes now; every rank says it at the same point."""
        self._count += 1
        self._place, self._since = place, time.monotonic()
        if self._since - self._armed > self._hang_after / 20:
            self._armed = self._since
            faulthandler.dump_traceback_later(self._hang_after + _BACKSTOP, exit=True)

    def __enter__(self) -> "Watch":
        self._since = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(min(5.0, self._hang_after / 20)):
            if time.monotonic() - self._since > self._hang_after:
                count = self._count
                self._write()
                # The first rank speaks for all: were another to leave before, its connections would break.
                self._over.wait(min(_OTHERS, self._hang_after / 2) * (1 if self._rank == 0 else 3))
                if self._count == count and not self._over.is_set():
                    if self._rank == 0:
                        print(f"hung: {describe_hang(self._folder, self._hang_after)}", file=sys.stderr, flush=True)
                    os._exit(EXIT_HUNG)  # the main thread cannot be asked

    def _write(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with open(self._folder / f"rank_{self._rank:05d}.txt", "w") as file:
            facts = {"rank": self._rank, "places_said": self._count, "place": self._place, "host": os.uname().nodename}
            file.write(json.dumps(facts) + "\n")
            file.flush()
            faulthandler.dump_traceback(file, all_threads=True)


def describe_hang(folder: Path, hang_after: float) -> str:
    """Say in a line where the ranks are that wrote to `folder` in the last minutes, the ones behind first."""
    recent = time.time() - hang_after - _BACKSTOP
    files = [path for path in sorted(folder.glob("rank_*.txt")) if path.stat().st_mtime > recent]
    ranks = [json.loads(path.read_text().split("\n", 1)[0]) for path in files]
    furthest = max(rank["places_said"] for rank in ranks)
    behind = [rank for rank in ranks if rank["places_said"] < furthest]
    ahead = next(rank for rank in ranks if rank["places_said"] == furthest)
    names = "; ".join(f"rank {r['rank']} on {r['host']} is behind, at {r['place']}" for r in behind[:4])
    more = f" and {len(behind) - 4} more" if len(behind) > 4 else ""
    others = f"the others are at {ahead['place']}" if behind else f"all ranks are at {ahead['place']}"
    return (
        f"no progress for {hang_after:g} s (guard.hang_after): {names + more + '; ' if behind else ''}{others}; "
        f"their stacks: {folder}"
    )
