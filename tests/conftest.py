"""Settings of every test: few threads, the tools of this environment on the path, and a count of time per folder."""

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported anywhere: two cores carry several ranks, and each rank starts its own thread pool.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# DeepSpeed builds its operations with ninja, which lies beside this python whether or not .venv is activated.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

import pytest
from hypothesis import settings

ROOT = Path(__file__).parent.parent

settings.register_profile("m3ae_scale", deadline=None, max_examples=50)
settings.load_profile("m3ae_scale")

# What a test may change and must put back: else a later test, or what it starts, meets another process than alone.
_LEFT_ALONE = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@pytest.fixture(autouse=True)
def process_left_as_found() -> Iterator[None]:
    """Fail a test that leaves this process a rank of something, or deaf to signals."""
    before = _process_state()
    yield
    assert _process_state() == before, "the test changed this process: its rank's variables or its signals"


def _process_state() -> tuple[object, ...]:
    variables = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    return variables, signal.pthread_sigmask(signal.SIG_BLOCK, ()), *map(signal.getsignal, _LEFT_ALONE)


_seconds: dict[str, float] = defaultdict(float)
_counts: dict[str, int] = defaultdict(int)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    folder = str(Path(report.nodeid.split("::")[0]).parent)
    _seconds[folder] += report.duration
    _counts[folder] += report.when == "call"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("time per folder")
    for folder, seconds in sorted(_seconds.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:8.1f} s  {_counts[folder]:5d} tests  {folder}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the project."""
    return ROOT
