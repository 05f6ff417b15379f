"""A local Slurm cluster and its jobs, as the tests of this folder use them."""

import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "slurm" / "local_cluster"
# Taken before any test in this process opens groups and so becomes a rank.
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "M3AE_"))}
ENVIRONMENT["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{ENVIRONMENT['PATH']}"
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
PATIENCE = 240.0  # seconds, for what takes one on a quiet machine

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")

Done = subprocess.CompletedProcess


def wait_for(what: str, ready: Callable[[], object], tell: Callable[[], str] = str, patience: float = PATIENCE) -> None:
    """Wait until `ready()`; fails with what `tell()` says."""
    deadline = time.monotonic() + patience
    while not ready():
        assert time.monotonic() < deadline, f"waited {patience:.0f} s for {what}; {tell()}"
        time.sleep(0.2)


class Cluster:
    """A cluster in a folder of its own, on ports of its own."""

    def __init__(self, state: Path, port: int):
        self.state = state
        self.environment = {**ENVIRONMENT, "M3AE_CLUSTER": str(state), "M3AE_CLUSTER_PORT": str(port)}
        self.environment["SLURM_CONF"] = str(state / "slurm.conf")

    def local(self, name: str, *arguments: str) -> Done:
        """Run slurm/local_cluster/`name`."""
        command = [str(LOCAL / name), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def run(self, *command: str, cwd: Path | None = None, code: int = 0, **variables: str) -> str:
        """Run a command against the cluster; returns its output. Fails unless it exits with `code`."""
        environment = {**self.environment, **variables}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{' '.join(command)}: exit {done.returncode}\n{said}"
        return said

    def nodes(self) -> list[str]:
        """Return the state of each node; a * says that it does not answer."""
        return self.run("sinfo", "-h", "-N", "-o", "%N %T").splitlines()

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm knows about a job: {"JobState": ..., "Restarts": ..., "Reason": ...}."""
        text = self.run("scontrol", "show", "job", number, "-o")
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def await_job(self, number: str, *states: str) -> dict[str, str]:
        """Wait until the job is in one of `states`; a job that was queued again starts without its two minutes."""

        def arrived() -> bool:
            job = self.job(number)
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime":
                self.run("scontrol", "update", f"jobid={number}", "StartTime=now")
            assert job["JobState"] in states or job["JobState"] not in ENDED, self.tell(number)
            return job["JobState"] in states

        wait_for(f"job {number} to be {' or '.join(states)}", arrived, lambda: self.tell(number))
        return self.job(number)

    def tell(self, number: str) -> str:
        """Return all there is to know about a job, for a failure."""
        job = self.job(number)
        out = Path(job["StdOut"])
        log = self.state / "slurmctld.log"
        parts = [str(job), *(path.read_text()[-4000:] for path in (out, log) if path.exists())]
        return "\n".join(parts)


def start_or_skip(cluster: Cluster, nodes: str = "2") -> Cluster:
    """Start the cluster; without Slurm, where it cannot be installed either, the test is skipped and says so."""
    done = cluster.local("start", nodes)
    if "not installed" in done.stderr or "could not install" in done.stderr:
        reason = f"NO SLURM HERE, its tests are left out: {done.stderr.strip().splitlines()[-1]}"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    assert done.returncode == 0, done.stderr
    return cluster
