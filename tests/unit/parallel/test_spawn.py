"""Ranks on one machine: started with their places, stopped together, their failure told once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = (
    "import sys; from m3ae_scale.parallel.launch import launch_local; sys.exit(launch_local({n}, {argv!r}, **{k!r}))"
)
UNSET = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "PYTHONUNBUFFERED")  # the last tears a line into two writes
RANK = "import os, sys, time, signal; rank = int(os.environ['RANK']); "


def launch(n: int, program: str, environ: dict[str, str] | None = None, **keywords: float) -> "subprocess.Popen[str]":
    code = LAUNCH.format(n=n, argv=[sys.executable, "-c", RANK + program], k=keywords)
    clean = {k: v for k, v in os.environ.items() if k not in UNSET}
    return subprocess.Popen(
        [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**clean, **(environ or {})},
    )  # fmt: skip


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_each_rank_finds_its_place() -> None:
    program = (
        "from m3ae_scale.parallel.launch import find_ranks; r = find_ranks(os.environ); "
        "os.write(1, f'{r.rank} {r.world} {r.local_rank} {r.local_world} {r.master_port} {r.source}\\n'.encode())"
    )
    code, out, err = finish(launch(3, program))
    assert code == 0, err
    lines = sorted(out.splitlines())
    port = lines[0].split()[4]  # one for all
    assert lines == [f"{r} 3 {r} 3 {port} m3ae-scale" for r in range(3)]


@pytest.mark.parametrize("given", [None, "7"])
def test_threads_are_shared_out_unless_set(given: str | None) -> None:
    program = "os.write(1, (os.environ['OMP_NUM_THREADS'] + '\\n').encode())"
    _, out, _ = finish(launch(2, program, {"OMP_NUM_THREADS": given} if given else None))
    expected = given or str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert out.split() == [expected, expected]


def test_the_first_failing_rank_is_named_and_the_others_are_stopped() -> None:
    code, _, err = finish(launch(3, "sys.exit(7) if rank == 1 else time.sleep(300)", grace=0.2))
    assert code == 7
    assert err.splitlines() == ["rank 1 of 3 failed first, with exit code 7; the others were stopped"]


def test_a_rank_that_ignores_the_request_to_stop_is_killed() -> None:
    program = "sys.exit(1) if rank == 0 else (signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(300))"
    code, _, _ = finish(launch(2, program, grace=1.0, kill_after=0.5))
    assert code == 1


def test_a_rank_ended_by_a_signal_says_which() -> None:
    code, _, err = finish(launch(2, "os.kill(os.getpid(), 9) if rank == 1 else time.sleep(300)", grace=0.2))
    assert code == 128 + 9
    assert "rank 1 of 2 failed first, ended by SIGKILL (out of memory?)" in err


def test_a_mistake_that_every_rank_meets_is_told_once() -> None:
    code, _, err = finish(launch(3, "print('error: no such file', file=sys.stderr); sys.exit(2)"))
    assert code == 2
    assert err == "error: no such file\n"


def test_a_mistake_that_one_rank_meets_is_told_too() -> None:
    program = "rank == 2 and (print('error: bad shard', file=sys.stderr), sys.exit(2)); time.sleep(300)"
    code, _, err = finish(launch(3, program, grace=0.2))
    assert code == 2
    assert err == "error: bad shard\n"


def test_other_errors_carry_their_rank() -> None:
    _, _, err = finish(launch(2, "print('hm', file=sys.stderr)"))
    assert sorted(err.splitlines()) == ["[rank 1] hm", "hm"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_every_rank_once(number: signal.Signals, tmp_path: Path) -> None:
    program = (
        f"got = []; signal.signal({int(number)}, lambda *a: got.append(1)); "
        f"open(r'{tmp_path}/ready' + str(rank), 'w').close(); "
        "exec('while not got: time.sleep(0.05)'); time.sleep(0.5); "
        "os.write(1, f'{rank}:{len(got)}\\n'.encode())"
    )
    process = launch(2, program)
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    code, out, _ = finish(process)
    assert code == 0
    assert sorted(out.split()) == ["0:1", "1:1"]


def test_a_killed_launcher_leaves_no_rank_behind(tmp_path: Path) -> None:
    process = launch(2, f"open(r'{tmp_path}/' + str(os.getpid()), 'w').close(); time.sleep(300)")
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in pids)


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()
