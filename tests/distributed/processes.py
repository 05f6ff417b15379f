"""Runs a function of a module beside this file on several gloo ranks, under a hard time limit.

The ranks are forked from one process that has already imported torch and DeepSpeed: else every call would pay for that
once a rank. Ranks that a user starts are started anew in tests/e2e and in test_faults.py.
"""

import atexit
import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import pytest

from m3ae_scale.parallel.launch import Ranks
from m3ae_scale.parallel.spawn import die_with_parent, free_port

HERE = Path(__file__).parent
_IMPORTED_ONCE = ("torch._dynamo", "on_ranks", "on_checkpoints", "on_initial", "m3ae_scale.parallel.linear")


def run_ranks(world: int, target: str, argument: Any = None, timeout: float = 400.0) -> Any:
    """Call `target` ("module:function") with the JSON-able `argument` on `world` ranks; return what rank 0 returned.

    A rank that fails, or one that hangs past `timeout` seconds, fails the test with its last output.
    """
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        job = {"world": world, "target": target, "argument": argument, "timeout": timeout, "folder": folder}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        codes: list[int | None] = json.loads(server.stdout.readline())
        failed = [r for r, code in enumerate(codes) if code] or [r for r, code in enumerate(codes) if code is None]
        if failed:
            first = failed[0]
            tail = (Path(folder) / f"rank{first}.log").read_text(errors="replace")[-3000:]
            reason = "hung past the time limit" if codes[first] is None else f"exited with {codes[first]}"
            pytest.fail(f"{target} on {world} ranks: rank {first} {reason}\n{tail}")
        return json.loads((Path(folder) / "result.json").read_text())


@functools.cache
def _server() -> "subprocess.Popen[str]":
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    atexit.register(server.kill)
    return server


def _serve() -> None:
    """Fork the ranks of each job that comes in, and answer with their exit codes; None for one that had to be ended."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, answers stay alone
    sys.path.insert(0, str(HERE))
    for module in _IMPORTED_ONCE:
        importlib.import_module(module)
    for line in sys.stdin:
        job = json.loads(line)
        port = free_port()
        ranks = [_fork(job, rank, port) for rank in range(job["world"])]
        codes = _wait(ranks, job["timeout"])
        answers.write(json.dumps(codes) + "\n")
        answers.flush()


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child == 0:
        _be_rank(job, rank, port)
    return child


def _be_rank(job: dict[str, Any], rank: int, port: int) -> NoReturn:
    code = 1
    try:
        die_with_parent()
        os.setsid()
        folder, world = Path(job["folder"]), job["world"]
        log = os.open(folder / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= Ranks(rank, world, rank, world, "127.0.0.1", port, "fork").environment()
        module, function = job["target"].split(":")
        value = getattr(importlib.import_module(module), function)(job["argument"])
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(value))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(ranks: list[int], timeout: float) -> list[int | None]:
    """Wait until all have ended, one has failed, or time is up; then end the rest."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + timeout
    while len(codes) < len(ranks) and not any(codes.values()) and time.monotonic() < deadline:
        for rank in set(ranks) - set(codes):
            ended, status = os.waitpid(rank, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    for rank in set(ranks) - set(codes):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank, signal.SIGKILL)
        os.waitpid(rank, 0)
    return [codes.get(rank) for rank in ranks]


if __name__ == "__main__":
    _serve()
