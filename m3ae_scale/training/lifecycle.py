"""How a run is asked to stop, and how all its ranks agree on the step to stop at.

SIGTERM and SIGUSR1 (SLURM's early warning) wait until a step is done, whatever the run is doing when they come: opening
data, compiling, validating, saving. SIGINT (Ctrl-C) counts from the first step on. After each step the ranks take the
maximum of their wishes; the answer is read one step later, so that nobody waits for it.
"""

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from m3ae_scale.training.signals import HELD, signal_waits, signals_held


class StopRequest:
    """Collects requests to stop. Every rank must make one at the same time."""

    def __init__(self, device: torch.device):
        self._caught = False
        self._vote = torch.zeros((), dtype=torch.int32)
        self._pending: Any = None
        # Over the host: reading the answer must not wait for `device`. None: the world's own, which is gloo on a CPU.
        self._group = dist.new_group(backend="gloo") if device.type == "cuda" else None
        # The command line holds the others back. Without it there may be threads that would take them: catch them.
        caught = (signal.SIGINT, *(() if signals_held() else HELD))
        self._before = {number: signal.signal(number, self._catch) for number in caught}

    @property
    def received(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._caught or signal_waits()

    def agreed(self) -> bool:
        """Vote, and return what all ranks voted one call ago. Every rank must call it once a step."""
        answer = False
        if self._pending is not None:
            self._pending.wait()
            answer = bool(self._vote.item())
        self._vote.fill_(int(self.received))
        self._pending = dist.all_reduce(self._vote, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    def release(self) -> None:
        """Let signals do again what they did before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._caught = True
