"""Which rank this process is, whoever started it; and N ranks of one command on this machine. Imports no torch."""

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from m3ae_scale.errors import InputError
from m3ae_scale.parallel.spawn import MARK, free_port, launch_local

__all__ = ["Ranks", "find_ranks", "first_host", "is_launched", "launch_local"]

_LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those of its run."""

    rank: int
    world: int
    local_rank: int  # among the ranks of this machine
    local_world: int
    master_addr: str  # host of rank 0
    master_port: int
    source: str  # who said so: "torchrun", "deepspeed", "m3ae-scale", "srun", "mpirun", "single process", ...

    def environment(self) -> dict[str, str]:
        """Return the variables that torch.distributed and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def is_launched(environ: Mapping[str, str]) -> bool:
    """Tell whether a launcher started this process as one of its ranks."""
    return _set_by_torch(environ) or _is_step(environ) or "OMPI_COMM_WORLD_RANK" in environ


def find_ranks(environ: Mapping[str, str]) -> Ranks:
    """Read the rank from the variables of torchrun, the deepspeed launcher, srun or mpirun; else a single process.

    MASTER_ADDR and MASTER_PORT are taken where they are set. Raises InputError where a variable is missing or is no
    number, and in a SLURM allocation of several tasks that srun did not start.
    """
    if _set_by_torch(environ):
        ranks = _from_torch(environ)
    elif _is_step(environ):
        ranks = _from_slurm(environ)
    elif "OMPI_COMM_WORLD_RANK" in environ:
        ranks = _from_mpi(environ)
    else:
        tasks = environ.get("SLURM_NTASKS", "1")
        if "SLURM_JOB_ID" in environ and tasks != "1":
            raise InputError(
                f"SLURM_NTASKS: found an allocation of {tasks} tasks, but srun did not start this process; "
                f"write srun before the command, or --nproc N after it for N processes on this node"
            )
        ranks = Ranks(0, 1, 0, 1, _LOCALHOST, free_port(), "single process")
    if not (0 <= ranks.rank < ranks.world and 0 <= ranks.local_rank < ranks.local_world <= ranks.world):
        raise InputError(
            f"{ranks.source}: found rank {ranks.rank} of {ranks.world} and local rank {ranks.local_rank} of "
            f"{ranks.local_world}; expected each rank below its count: check the launcher's variables"
        )
    return ranks


def first_host(nodelist: str) -> str:
    """Return the first host of a SLURM node list: "gpu[07-09,12],login1" gives "gpu07"."""
    first = re.split(r",(?![^\[]*\])", nodelist)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first).strip()


def _set_by_torch(environ: Mapping[str, str]) -> bool:
    return "RANK" in environ and "WORLD_SIZE" in environ


def _is_step(environ: Mapping[str, str]) -> bool:
    # A batch script has SLURM_PROCID=0 and SLURM_NTASKS too; only a task of srun belongs to a numbered step.
    return "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ


def _from_torch(environ: Mapping[str, str]) -> Ranks:
    if MARK in environ:
        source = "m3ae-scale"
    elif "TORCHELASTIC_RUN_ID" in environ:
        source = "torchrun"
    elif "CROSS_RANK" in environ:
        source = "deepspeed"
    else:
        source = "RANK and WORLD_SIZE"
    world = _number(environ, "WORLD_SIZE")
    size = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environ else "LOCAL_SIZE"
    return Ranks(
        rank=_number(environ, "RANK"),
        world=world,
        local_rank=_number(environ, "LOCAL_RANK", default=0 if world == 1 else None),
        local_world=_number(environ, size, default=world),
        master_addr=_address(environ, _LOCALHOST if world == 1 else None),
        master_port=_number(environ, "MASTER_PORT", default=free_port() if world == 1 else None),
        source=source,
    )


def _from_slurm(environ: Mapping[str, str]) -> Ranks:
    world = _number(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS")
    nodelist = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    # Every task of a step must agree on the port without talking, and two steps on one node must not.
    job, step = _number(environ, "SLURM_JOB_ID", default=0), environ["SLURM_STEP_ID"]
    return Ranks(
        rank=_number(environ, "SLURM_PROCID"),
        world=world,
        local_rank=_number(environ, "SLURM_LOCALID"),
        local_world=_tasks_here(environ, world),
        master_addr=_address(environ, first_host(nodelist) or None),
        master_port=_number(environ, "MASTER_PORT", default=_port(f"{job}.{step}")),
        source="srun",
    )


def _from_mpi(environ: Mapping[str, str]) -> Ranks:
    world = _number(environ, "OMPI_COMM_WORLD_SIZE")
    local_world = _number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE")
    return Ranks(
        rank=_number(environ, "OMPI_COMM_WORLD_RANK"),
        world=world,
        local_rank=_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
        local_world=local_world,
        master_addr=_address(environ, _LOCALHOST if local_world == world else None),
        master_port=_number(environ, "MASTER_PORT", default=_port(environ.get("PMIX_NAMESPACE", ""))),
        source="mpirun",
    )


def _tasks_here(environ: Mapping[str, str], world: int) -> int:
    """Return this node's entry of SLURM_STEP_TASKS_PER_NODE, written as "4(x2),3"."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE")
    if text is None:
        return _number(environ, "SLURM_NTASKS_PER_NODE", default=world)
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\(x(\d+)\))?\s*", part)
        if match is None:
            raise InputError(f"SLURM_STEP_TASKS_PER_NODE: found {text!r}, expected counts as in 4(x2),3")
        counts += [int(match[1])] * int(match[2] or 1)
    node = _number(environ, "SLURM_NODEID", default=0)
    return counts[node] if node < len(counts) else counts[-1]


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    if name not in environ:
        if default is None:
            raise InputError(f"{name}: not set, though its companions are; start the command with its launcher")
        return default
    try:
        return int(environ[name])
    except ValueError:
        raise InputError(f"{name}: found {environ[name]!r}, expected a whole number") from None


def _address(environ: Mapping[str, str], default: str | None) -> str:
    address = environ.get("MASTER_ADDR") or default
    if address is None:
        raise InputError("MASTER_ADDR: not set; give every rank the host of rank 0 (mpirun -x MASTER_ADDR=HOST ...)")
    return address


def _port(name: str) -> int:
    """Map a job's name to a port below the ones that the kernel hands out."""
    return 12000 + zlib.crc32(name.encode()) % 20000
