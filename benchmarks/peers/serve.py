"""How a peer is driven: it prepares, says that it is ready, then takes as many steps as it is asked for.

A peer is a program with one argument, a JSON of the task (`Task` below as a dict). It prints one JSON line when it is
ready; for each number N that it then reads it takes N steps and prints their seconds. So peers with environments of
their own take turns on one machine, and whatever else runs there slows all of them alike. Needs numpy alone.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def read_task() -> dict[str, Any]:
    """Read the task from the command line.

    data (an .npz), checkout (a folder), encoder and decoder ([dim, depth, heads]), image, patch, vocabulary, precision
    ("fp32" or "bf16"), device ("cpu" or "cuda"), threads, micro_batch, text (False: images alone).
    """
    return json.loads(sys.argv[1])


def read_batches(task: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """Read the micro-batches.

    image: (B, side, side, 3) float32, normalised; text: (B, 64) int32; padding: (B, 64) float32, 1.0 = padding.
    """
    with np.load(task["data"]) as data:
        return [{key: data[f"{key}{i}"] for key in ("image", "text", "padding")} for i in range(int(data["count"]))]


def serve(step: Callable[[int], None], wait: Callable[[], None], info: dict[str, Any]) -> None:
    """Warm up, then take steps as asked. step(n): take the n-th step; wait(): until the device has done it."""
    number = 0
    for _ in range(3):
        step(number)
        wait()
        number += 1
    print(json.dumps(info), flush=True)
    for line in sys.stdin:
        seconds = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step(number)
            wait()
            seconds.append(time.perf_counter() - start)
            number += 1
        print(json.dumps(seconds), flush=True)
