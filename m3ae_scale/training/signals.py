"""Requests to stop are held back, not caught, so that they reach nothing that the run has started. Imports no torch.

SLURM sends a signal to every process of a task: a compiler that DeepSpeed or Triton has started would die of it, and
the run with it. Linux keeps a blocked signal waiting, even one that is ignored; and what is started later inherits the
block, or where a shell lifts that, the ignoring.
"""

import os
import signal

HELD = frozenset({signal.SIGTERM, signal.SIGUSR1})


def hold_signals() -> None:
    """Hold SIGTERM and SIGUSR1 back from this process, from before it starts threads: they inherit the block."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    for number in HELD:
        signal.signal(number, signal.SIG_IGN)
    os.register_at_fork(after_in_child=_let_terminate)


def _let_terminate() -> None:
    # A pool of processes ends its workers by SIGTERM, and waits for them.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def signals_held() -> bool:
    """Tell whether they are held back."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()) >= HELD


def signal_waits() -> bool:
    """Tell whether one of them has come since they were held back."""
    return bool(signal.sigpending() & HELD)
