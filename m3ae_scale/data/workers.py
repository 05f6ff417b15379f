"""The worker processes of a stream: begun, missed at the next fetch when one has died, and ended with their stream."""

import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

_waiting = threading.Event()  # the main thread waits for a worker


def begin_worker(worker: int) -> None:
    """Have a worker go on when the job is asked to stop: only the trainer knows when it has had enough batches."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)


def next_of(stream: Any, rank: int) -> Any:
    """Return the next item of an iterator of a DataLoader.

    Raises RuntimeError when a worker died, here and not earlier: a step or a save that is under way is finished first.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        _interrupt_waits_alone()
    try:
        if in_main:
            _waiting.set()
        for worker in getattr(stream, "_workers", ()):
            if worker.exitcode:
                raise RuntimeError(f"DataLoader worker ended with exit code {worker.exitcode}")
        return next(stream)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise RuntimeError(
            f"a data worker process of rank {rank} died ({str(error).splitlines()[0]}); "
            "most often the machine ran out of memory: lower data.workers or data.prefetch"
        ) from None
    finally:
        _waiting.clear()


def end_workers(stream: Any) -> None:
    """End the workers of an iterator of a DataLoader, also those who are busy, with a slow download perhaps."""
    if hasattr(stream, "_shutdown_workers"):  # absent when there are none
        stream._shutdown_workers()
        for worker in stream._workers:
            worker.kill()


def _interrupt_waits_alone() -> None:
    # torch's handler raises wherever the main thread is when a worker dies: in a collective, or in a save.
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and getattr(handler, "func", None) is not _when_waiting:
        signal.signal(signal.SIGCHLD, partial(_when_waiting, handler))


def _when_waiting(handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
    if _waiting.is_set():
        handler(number, frame)
