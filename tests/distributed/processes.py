"""Runs a function of a module beside this file on several gloo ranks, under a hard time limit."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from m3ae_scale.parallel.spawn import die_with_parent

HERE = Path(__file__).parent


def run_ranks(world: int, target: str, argument: Any = None, timeout: float = 400.0) -> Any:
    """Call `target` ("module:function") with the JSON-able `argument` on `world` ranks; return what rank 0 returned.

    A rank that fails, or one that hangs past `timeout` seconds, fails the test with its last output.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = []
        for rank in range(world):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            }
            with open(Path(folder) / f"rank{rank}.log", "wb") as log:
                ranks.append(
                    subprocess.Popen(
                        [sys.executable, __file__, target, json.dumps(argument), str(result)],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                        preexec_fn=die_with_parent,
                    )
                )
        try:
            codes = _wait(ranks, timeout)
        finally:
            for process in ranks:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        failed = [r for r, code in enumerate(codes) if code] or [r for r, code in enumerate(codes) if code is None]
        if failed:
            first = failed[0]
            tails = [(Path(folder) / f"rank{r}.log").read_text(errors="replace")[-3000:] for r in range(world)]
            reason = "hung past the time limit" if codes[first] is None else f"exited with {codes[first]}"
            pytest.fail(f"{target} on {world} ranks: rank {first} {reason}\n{tails[first]}")
        return json.loads(result.read_text())


def _wait(ranks: list[subprocess.Popen], timeout: float) -> list[int | None]:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        codes = [process.poll() for process in ranks]
        if all(code is not None for code in codes) or any(code not in (None, 0) for code in codes):
            return codes
        time.sleep(0.05)
    return [process.poll() for process in ranks]


def _main() -> None:
    target, argument, result = sys.argv[1:]
    sys.path.insert(0, str(HERE))
    module, function = target.split(":")
    value = getattr(importlib.import_module(module), function)(json.loads(argument))
    if os.environ["RANK"] == "0":
        Path(result).write_text(json.dumps(value))


if __name__ == "__main__":
    _main()
