"""Freed memory stays with the process: large buffers made again and again cost no page faults after the first time."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource
import torch
from m3ae_scale.parallel.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(25_000_000)  # 100 MB: 24 thousand pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if faults() < 4 * 20_000:
    print("kept without being asked")
elif keep_freed_memory():
    for _ in range(5):  # until the blocks have found their places
        faults()
    print("kept" if faults() < 1000 else "given back")
else:
    print("no mallopt")
"""


def test_large_buffers_are_reused() -> None:
    """By default glibc maps each of them anew."""
    # What a user may have set for the same end.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environment)
    if run.stdout.strip() == "kept without being asked":
        pytest.skip("large blocks cost no page faults here: another malloc, or huge pages for all of memory")
    assert run.stdout.strip() in ("kept", "no mallopt"), run.stdout
