"""Watts of this rank's GPU while something runs, by asking nvidia-smi from a thread; None where it cannot."""

import statistics
import subprocess
import threading
from types import TracebackType

import torch

_EVERY = 0.5  # seconds


class PowerReading:
    """Reads the power draw while the context is open; `watts` is the median, None where there is nothing to read."""

    def __init__(self, device: torch.device):
        self._end = threading.Event()
        self._readings: list[float] = []
        self._thread: threading.Thread | None = None
        if device.type == "cuda":
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            self._command = ["nvidia-smi", f"--id={uuid if uuid.startswith(('GPU-', 'MIG-')) else 'GPU-' + uuid}"]
            self._command += ["--query-gpu=power.draw", "--format=csv,noheader,nounits"]
            self._thread = threading.Thread(target=self._read_all, daemon=True)

    @property
    def watts(self) -> float | None:
        """Median of the readings."""
        return statistics.median(self._readings) if self._readings else None

    def __enter__(self) -> "PowerReading":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _read_all(self) -> None:
        while not self._end.is_set():
            try:
                done = subprocess.run(self._command, capture_output=True, text=True, timeout=5, check=True)
                self._readings.append(float(done.stdout))
            except (OSError, ValueError, subprocess.SubprocessError):
                return
            self._end.wait(_EVERY)
