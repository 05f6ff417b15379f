"""How a run is asked to stop, and how all its ranks agree on the step to stop at.

SIGTERM, SIGINT and SIGUSR1 (SLURM's early warning) set a flag on the rank that receives them. After each step the
ranks take the maximum of their flags; the answer is read one step later, so that nobody waits for it. A signal that
comes earlier (while data is opened, kernels are compiled) or between two steps (while validating, saving) is kept.
"""

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """Collects requests to stop, from its making on."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None  # on this rank
        self._vote = torch.zeros((), dtype=torch.int32)
        self._pending: Any = None
        self._group: dist.ProcessGroup | None = None  # None: the world's own, which is gloo on a CPU
        for number in _SIGNALS:
            signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)  # the command line held them back until here

    def on(self, device: torch.device) -> "StopRequest":
        """Vote among the ranks of the run, over the host: reading the answer must not wait for `device`."""
        self._group = dist.new_group(backend="gloo") if device.type == "cuda" else None
        return self

    def agreed(self) -> bool:
        """Vote, and return what all ranks voted one call ago. Every rank must call it once a step."""
        answer = False
        if self._pending is not None:
            self._pending.wait()
            answer = bool(self._vote.item())
        self._vote.fill_(int(self.received is not None))
        self._pending = dist.all_reduce(self._vote, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
