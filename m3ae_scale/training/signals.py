"""Requests to stop are held back, not caught, so that they reach nothing that the run has started. Imports no torch.

SLURM sends a signal to every process of a task: a compiler that DeepSpeed or Triton has started would die of it, and
the run with it. Linux keeps a blocked signal waiting, even one that is ignored; and what is started later inherits the
block, or where a shell lifts that, the ignoring.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

HELD = frozenset({signal.SIGTERM, signal.SIGUSR1})


@contextmanager
def held_signals() -> Iterator[None]:
    """Hold SIGTERM and SIGUSR1 back from this process; enter before it starts threads, which inherit the block.

    Left by a SystemExit they stay held: one more must not change the exit code of a process that is leaving.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in HELD}

    def release() -> None:
        while signal.sigtimedwait(HELD, 0) is not None:  # what has come meanwhile was for the work that is over
            pass
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        yield
    except SystemExit:
        raise
    except BaseException:
        release()
        raise
    release()


def signals_held() -> bool:
    """Tell whether they are held back."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= HELD


def signal_waits() -> bool:
    """Tell whether one of them has come since they were held back."""
    return bool(signal.sigpending() & HELD)


def _let_terminate() -> None:
    # A pool of processes ends its workers by SIGTERM, and waits for them.
    if signals_held():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


os.register_at_fork(after_in_child=_let_terminate)
