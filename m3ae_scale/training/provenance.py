"""Where a number comes from: the machine, the versions, the commit and the command line, as plain JSON values."""

import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from m3ae_scale.version import __version__

# Whatever of these is installed is named; each can change a number.
_PACKAGES = (
    "torch", "deepspeed", "megatron-core", "webdataset", "mlflow", "numpy", "tokenizers", "pillow", "simplejpeg",
    "triton", "flash-attn", "transformer-engine", "apex", "nvidia-nccl-cu12", "nvidia-nccl-cu13",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Describe this process: date (UTC), host, command, hardware, versions, git, slurm_job.

    What this machine lacks (no GPU, no checkout, no SLURM) is None or absent.
    """
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "command": _command(),
        "hardware": _hardware(),
        "versions": _versions(),
        "git": git_state(Path(__file__).parent.parent),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def git_state(package: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout that `package` is the code of, and whether the code differs from it.

    None for an installed package, even if it is installed inside somebody else's checkout.
    """
    top = _output("git", "-C", str(package), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != package.resolve().parent:
        return None
    commit = _output("git", "-C", str(package), "rev-parse", "HEAD")
    changes = _output("git", "-C", str(package), "status", "--porcelain", "--", ".")
    return {"commit": commit, "dirty": bool(changes)} if commit else None


def _command() -> str:
    program = sys.argv[0] if sys.argv else ""
    if shutil.which(Path(program).name) == program:  # found on PATH: its name is enough
        program = Path(program).name
    return shlex.join([program, *sys.argv[1:]])


def _hardware() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    found: dict[str, Any] = {"cpu": _cpu_model(), "cores": usable, "memory_gib": round(memory / 2**30, 1)}
    import torch  # here, so that reading a version does not wait for it

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found["gpus"] = [{"name": d.name, "memory_gib": round(d.total_memory / 2**30, 1)} for d in devices]
        found["cuda"] = torch.version.cuda
        found["gpu_driver"] = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "m3ae_scale": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
