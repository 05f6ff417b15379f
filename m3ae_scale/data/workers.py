"""The worker processes of a stream: begun, replaced when one has died, and ended with their stream."""

import mmap
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.context import ForkContext
from types import FrameType
from typing import Any

from torch.utils.data._utils.signal_handling import _remove_worker_pids


class WorkerDied(RuntimeError):
    """A worker process ended before its stream did."""


class _Flag:
    """An event without a lock, which a worker killed at the wrong moment would hold for ever."""

    def __init__(self) -> None:
        self._byte = mmap.mmap(-1, 1)  # one for all processes forked from here on

    def set(self) -> None:
        self._byte[0] = 1

    def is_set(self) -> bool:
        return self._byte[0] == 1


class Forks(ForkContext):
    """The multiprocessing_context of a DataLoader: its workers are forks, and none can leave the others locked out."""

    def Event(self) -> Any:
        """Return what tells the workers that their stream is over."""
        return _Flag()


_MOMENT = 1.0  # seconds
_PATIENCE = 30.0  # seconds, of which a worker needs some milliseconds
_waiting = threading.Event()  # the main thread waits for a worker


def begin_worker(begun: mmap.mmap, worker: int) -> None:
    """Mark a worker as begun, one that goes on when the job is asked to stop: the trainer knows when it has enough.

    begun: a byte for each worker, shared by all.
    """
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
    begun[worker] = 1


def expect_workers(stream: Any, begun: mmap.mmap) -> None:
    """Wait until all workers of an iterator of a DataLoader have begun.

    Raises WorkerDied when one has not in time. Python's own locks are not all made new in a fork (3.11: the one over
    its threads), so a worker can be born waiting for a thread that it does not have; it is ended here.
    """
    deadline = time.monotonic() + _PATIENCE
    while not all(begun[:]):
        _look_for_the_dead(stream, 0.01)
        if time.monotonic() > deadline:
            for worker in stream._workers:
                worker.kill()
            raise WorkerDied(f"had not begun after {_PATIENCE:g} s")


def next_of(stream: Any) -> Any:
    """Return the next item of an iterator of a DataLoader.

    Raises WorkerDied, here and not earlier: a step or a save that is under way when a worker dies is finished first.
    """
    try:
        with _waiting_for_workers(stream):
            return next(stream)
    except (StopIteration, WorkerDied):
        raise
    except Exception as error:
        if "DataLoader worker" in str(error):
            raise WorkerDied(str(error).splitlines()[0].strip()) from None
        # What a dying worker leaves half said can be any error, a moment before it counts as dead.
        _look_for_the_dead(stream, _MOMENT)
        raise


def end_workers(stream: Any) -> None:
    """End the workers of an iterator of a DataLoader, also those who are busy, with a slow download perhaps."""
    if not hasattr(stream, "_workers"):
        return
    try:
        with _waiting_for_workers(stream):
            stream._shutdown_workers()
    except RuntimeError:
        _abandon(stream)
    for worker in stream._workers:
        worker.kill()
    for worker in stream._workers:
        worker.join(_MOMENT)


def _abandon(stream: Any) -> None:
    # torch's own way to end a stream waits for what a dead worker may have left half done.
    stream._shutdown = True
    if hasattr(stream, "_pin_memory_thread"):
        stream._pin_memory_thread_done_event.set()
    for queue in stream._index_queues:
        queue.cancel_join_thread()
        queue.close()
    if stream._worker_pids_set:
        _remove_worker_pids(id(stream))
        stream._worker_pids_set = False


def _look_for_the_dead(stream: Any, patience: float = 0.0) -> None:
    workers = {worker.sentinel: worker for worker in getattr(stream, "_workers", ())}  # absent when there are none
    for sentinel in wait(list(workers), patience) if workers else ():
        worker = workers[sentinel]
        worker.join()
        if worker.exitcode:
            how = f"by {signal.Signals(-worker.exitcode).name}" if worker.exitcode < 0 else f"with {worker.exitcode}"
            raise WorkerDied(f"ended {how}")


@contextmanager
def _waiting_for_workers(stream: Any) -> Iterator[None]:
    """Let the death of a worker of `stream` raise, before or while the main thread is in here."""
    # torch's handler raises wherever the main thread is when a worker dies: in a collective, or in a save.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD)
    if in_main and callable(handler) and getattr(handler, "func", None) is not _when_waiting:
        signal.signal(signal.SIGCHLD, partial(_when_waiting, handler))
    try:
        if in_main:
            _waiting.set()
        _look_for_the_dead(stream)
        yield
    finally:
        _waiting.clear()


def _when_waiting(handler: Callable[[int, FrameType | None], Any], number: int, frame: FrameType | None) -> None:
    if _waiting.is_set():
        handler(number, frame)
