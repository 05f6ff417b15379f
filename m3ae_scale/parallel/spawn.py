"""N ranks of one command on this machine: started, watched, signalled and stopped together."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from m3ae_scale.errors import EXIT_MISTAKE, EXIT_STOPPED

MARK = "M3AE_SCALE_LAUNCHED"  # set in the environment of each rank started here

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_POLL = 0.05  # seconds


def launch_local(
    nproc: int, argv: Sequence[str], *, grace: float = 3.0, grace_after_signal: float = 120.0, kill_after: float = 10.0
) -> int:
    """Run `argv` as `nproc` ranks on this machine; return the exit code of the first that fails, or 0.

    Output streams through. SIGINT, SIGTERM and SIGUSR1 go on to every rank. When a rank fails, the others have
    `grace` seconds to end by themselves (`grace_after_signal` when they were asked to stop: they may be writing a
    checkpoint), then get SIGTERM, and SIGKILL `kill_after` seconds later. A rank ended by signal n counts as 128 + n.
    Must be called from the main thread.
    """
    environments = _environments(nproc)
    ranks = [_start(argv, environment, rank) for rank, environment in enumerate(environments)]
    asked: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    held: dict[int, list[str]] = {rank: [] for rank in range(1, nproc)}
    pumps = [threading.Thread(target=_pump, args=(ranks[r], r, held[r]), daemon=True) for r in held]
    try:
        for pump in pumps:
            pump.start()
        first = _first_failure(ranks)
        if first is not None:
            code = ranks[first].returncode
            stop_asked = code == EXIT_STOPPED or any(number != signal.SIGUSR1 for number in asked)
            _end(ranks, grace_after_signal if stop_asked else grace, kill_after)
            if not stop_asked and code != EXIT_MISTAKE:
                print(_describe(first, nproc, code), file=sys.stderr, flush=True)
    finally:
        _end(ranks, 0.0, kill_after)
        for pump in pumps:
            pump.join(timeout=1.0)
        for number, handler in before.items():
            signal.signal(number, handler)
    _print_held(held, said_by_rank_0=ranks[0].returncode == EXIT_MISTAKE)
    return 0 if first is None else _exit_code(ranks[first].returncode)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environments(nproc: int) -> list[dict[str, str]]:
    port = free_port()
    shared = {
        **os.environ,
        "WORLD_SIZE": str(nproc),
        "LOCAL_WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # DeepSpeed builds its operations with ninja, which lies beside this python whether or not .venv is active.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        MARK: "1",
    }
    # Left alone, every rank would start a thread per core.
    shared.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // nproc)))
    return [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(nproc)]


def _start(argv: Sequence[str], environment: dict[str, str], rank: int) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        argv,
        env=environment,
        stderr=None if rank == 0 else subprocess.PIPE,  # rank 0 keeps the terminal
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which passes it on once
        preexec_fn=die_with_parent,
    )


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the process that started this one ends, however it ends."""
    pr_set_pdeathsig = 1  # prctl(2): a launcher that is killed leaves no rank holding a device
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _pump(process: "subprocess.Popen[str]", rank: int, held: list[str]) -> None:
    """Pass on the errors of a rank above 0, each line with its rank, but hold back its "error:" lines."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("error: "):
            held.append(line.rstrip("\n"))
        else:
            print(f"[rank {rank}] {line}", end="", file=sys.stderr, flush=True)


def _print_held(held: dict[int, list[str]], said_by_rank_0: bool) -> None:
    # A user's mistake is met by every rank alike; it is told once.
    if not said_by_rank_0:
        for line in dict.fromkeys(line for lines in held.values() for line in lines):
            print(line, file=sys.stderr, flush=True)


def _first_failure(ranks: "list[subprocess.Popen[str]]") -> int | None:
    """Wait until a rank fails, and return it, or until all have ended well."""
    while True:
        codes = [process.poll() for process in ranks]
        for rank, code in enumerate(codes):
            if code:
                return rank
        if all(code == 0 for code in codes):
            return None
        time.sleep(_POLL)


def _end(ranks: "list[subprocess.Popen[str]]", grace: float, kill_after: float) -> None:
    for wait, stop in ((grace, signal.SIGTERM), (kill_after, signal.SIGKILL)):
        deadline = time.monotonic() + wait
        while any(process.poll() is None for process in ranks) and time.monotonic() < deadline:
            time.sleep(_POLL)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(stop)
    for process in ranks:
        process.wait()


def _exit_code(returncode: int) -> int:
    return returncode if returncode >= 0 else 128 - returncode


def _describe(rank: int, nproc: int, returncode: int) -> str:
    if returncode < 0:
        name = signal.Signals(-returncode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"rank {rank} of {nproc} failed first, ended by {name}{hint}; the others were stopped"
    return f"rank {rank} of {nproc} failed first, with exit code {returncode}; the others were stopped"
