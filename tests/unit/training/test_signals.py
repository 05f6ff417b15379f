"""A signal to all processes of a task asks the run to stop, and ends nothing that the run has started."""

import os
import signal
import subprocess
import sys

import pytest

# A run: it starts a thread and a compiler, tells its parent, and looks whether it was asked to stop.
RUN = """
import signal, subprocess, sys, threading, time
from m3ae_scale.training.signals import held_signals, signal_waits
with held_signals():
    threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
    compiler = subprocess.Popen(["sh", "-c", "sleep 1; echo compiled"])
    assert not signal_waits()
    print("ready", flush=True)
    sys.stdin.readline()
    assert signal_waits()
    sys.exit(compiler.wait())
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_held_signal_waits_and_spares_the_children(number: signal.Signals) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    os.killpg(run.pid, number)
    os.killpg(run.pid, number)  # asked twice
    output, _ = run.communicate("\n", timeout=30)
    assert (run.returncode, output) == (0, "compiled\n")


def test_a_pool_can_still_end_its_workers() -> None:
    program = (
        "import multiprocessing, time; from m3ae_scale.training.signals import held_signals\n"
        "worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "with held_signals(): worker.start(); worker.terminate(); worker.join(20)\n"
        "raise SystemExit(worker.exitcode != -15)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_the_process_is_as_before_once_the_work_is_over() -> None:
    program = """
import os, signal
from m3ae_scale.training.signals import HELD, held_signals, signal_waits, signals_held
def state():
    return signal.pthread_sigmask(signal.SIG_BLOCK, ()), *(signal.getsignal(number) for number in HELD)
before = state()
try:
    with held_signals():
        assert signals_held()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal_waits()
        raise ValueError
except ValueError:
    assert state() == before and not signal_waits()
    raise SystemExit(3)
"""
    # In a process of its own: threads that other tests left here would take the signal, for they do not hold it.
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 3


def test_a_process_that_is_leaving_keeps_its_exit_code() -> None:
    program = (
        "import os, signal, sys; from m3ae_scale.training.signals import held_signals\n"
        "try:\n    with held_signals(): sys.exit(75)\n"
        "finally: os.kill(os.getpid(), signal.SIGTERM)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 75
