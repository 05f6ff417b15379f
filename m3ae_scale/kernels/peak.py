"""What the hardware can do at most: datasheet figures by GPU name, and a matmul ceiling measured here and now."""

import statistics
import time
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """Datasheet figures of one device: dense FLOP/s (no sparsity), and bytes/s of its memory."""

    bf16: float
    tf32: float
    fp32: float
    memory: float


# NVIDIA's datasheets. The first entry whose words all stand in the device's name is taken.
_T = 1e12
PEAKS: dict[str, Peak] = {
    "B200": Peak(2250 * _T, 1125 * _T, 75 * _T, 7.7 * _T),
    "H200 NVL": Peak(835.5 * _T, 417.5 * _T, 60 * _T, 4.8 * _T),
    "H200": Peak(989.5 * _T, 494.5 * _T, 67 * _T, 4.8 * _T),
    "H100 NVL": Peak(835.5 * _T, 417.5 * _T, 60 * _T, 3.9 * _T),
    "H100 PCIe": Peak(756 * _T, 378 * _T, 51 * _T, 2.0 * _T),
    "H100": Peak(989.5 * _T, 494.5 * _T, 67 * _T, 3.35 * _T),
    "A100 80GB PCIe": Peak(312 * _T, 156 * _T, 19.5 * _T, 1.935 * _T),
    "A100 80GB": Peak(312 * _T, 156 * _T, 19.5 * _T, 2.039 * _T),
    "A100": Peak(312 * _T, 156 * _T, 19.5 * _T, 1.555 * _T),
    "L40S": Peak(362 * _T, 183 * _T, 91.6 * _T, 0.864 * _T),
    "L4": Peak(121 * _T, 60 * _T, 30.3 * _T, 0.3 * _T),
    "A10": Peak(125 * _T, 62.5 * _T, 31.2 * _T, 0.6 * _T),
}


def datasheet(name: str) -> Peak | None:
    """Look a GPU up by the name that its driver gives ("NVIDIA H100 80GB HBM3"); None: not in the table."""
    words = name.replace("-", " ").upper().split()
    for known, peak in PEAKS.items():
        if all(word in words for word in known.upper().split()):
            return peak
    return None


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the datasheet's FLOP/s of `device` for matrix products in `dtype`; None where it is not known."""
    if device.type != "cuda":
        return None
    peak = datasheet(torch.cuda.get_device_name(device))
    if peak is None:
        return None
    if dtype in (torch.bfloat16, torch.float16):
        return peak.bf16
    return peak.tf32 if torch.backends.cuda.matmul.allow_tf32 else peak.fp32


def matmul_ceiling(device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5) -> float:
    """Measure FLOP/s of one large square matrix product, the median of `repeats`: what a model can hope for here.

    size: rows; by default 8192 on a GPU (several milliseconds), 1536 on a CPU.
    """
    n = size or (8192 if device.type == "cuda" else 1536)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 2):
        synchronise(device)
        start = time.perf_counter()
        a @ b
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / statistics.median(seconds[2:])


def synchronise(device: torch.device) -> None:
    """Wait until `device` has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
