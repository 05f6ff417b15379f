"""The sbatch command of a run, SLURM's own check of it, and its submission."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m3ae_scale.config import Experiment
from m3ae_scale.errors import InputError
from m3ae_scale.slurm.job import Request
from m3ae_scale.slurm.starts import CHAIN

TASKS = "M3AE_TASKS_PER_NODE"  # tells the script how many ranks a node has, where that is not one per GPU

SITE = "M3AE_SITE"  # tells the script where site.sh is, where that is not slurm/


@dataclass(frozen=True)
class Job:
    """A command that submits a job, and the variables that the job is to see."""

    command: Sequence[str]
    variables: Mapping[str, str]

    def __str__(self) -> str:
        """Write it as one would type it."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*settings, shlex.join(self.command)])


def make_job(
    experiment: Experiment,
    path: str,
    overrides: Sequence[str],
    request: Request,
    script: Path,
    options: Sequence[str] = (),
    chained: bool = False,
) -> Job:
    """Make the job that pretrains `experiment`, read from `path` with `overrides`, by `script`; `options` go to sbatch.

    What is said here counts over the #SBATCH lines of the script. chained: one of several jobs that run one after
    the other and are never requeued.
    """
    least, most = request.least, request.most
    command = [
        "sbatch",
        f"--job-name={experiment.name}",
        f"--nodes={least}" if least == most else f"--nodes={least}-{most}",
        f"--mincpus={request.tasks_per_node * (experiment.data.workers + 1)}",  # of a node: its ranks and their loaders
        f"--output={run_folder(experiment)}/slurm-%j.out",
    ]
    variables = {}
    if request.gpus_per_node:
        command.append(f"--gpus-per-node={request.gpus_per_node}")
    else:
        variables[TASKS] = str(request.tasks_per_node)
    if chained:
        command += ["--no-requeue", "--dependency=singleton"]
        variables[CHAIN] = f"{experiment.name}-{os.urandom(4).hex()}"
    site = script.with_name("site.sh")
    if site.is_file() and not Path("slurm/site.sh").is_file() and SITE not in os.environ:  # where the script looks
        variables[SITE] = str(site.resolve())
    return Job([*command, *options, str(script), path, *(f"--set={o}" for o in overrides)], variables)


def run_folder(experiment: Experiment) -> Path:
    """Return the folder of the run."""
    return Path(experiment.run.folder) / experiment.name


def find_script(name: str) -> Path:
    """Find the batch script `name`: as given, else the shipped one of that name. Raises InputError."""
    for place in (Path(), Path(__file__).resolve().parents[2], Path(sys.prefix) / "share" / "m3ae_scale"):
        if (place / name).is_file():
            return place / name
    raise InputError(f"--script: found no {name}; run from the folder that holds slurm/, or give the script's path")


def count_words(vocabulary: str) -> int:
    """Count the word pieces of a vocab.txt. Raises InputError where it cannot be read."""
    try:
        return sum(1 for line in Path(vocabulary).read_text(encoding="utf-8").splitlines() if line)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise InputError(f"data.tokenizer: cannot read {vocabulary} ({why}); is this the folder to run from?") from None


def require_sbatch() -> None:
    """Raise InputError where this machine has no sbatch."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch: not found on this machine; submit from a login node of your cluster, look with --dry-run, or try "
            'it here: eval "$(slurm/local_cluster/start 2)"'
        )


def check(job: Job) -> str:
    """Ask `sbatch --test-only` whether the job could run; returns when and where it would. Raises InputError."""
    said = _sbatch(job, "--test-only")
    return re.sub(r"^Job \d+ to start", "would start", said)


def submit(job: Job) -> str:
    """Run sbatch; returns the number of the job. Raises InputError where SLURM does not take it."""
    said = _sbatch(job)
    match = re.search(r"Submitted batch job (\d+)", said)
    return match[1] if match else said


def _sbatch(job: Job, *options: str) -> str:
    program, *rest = job.command
    environment = {**os.environ, **job.variables}
    done = subprocess.run([program, *options, *rest], capture_output=True, text=True, check=False, env=environment)
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in (done.stdout + done.stderr).splitlines()]
    said = "; ".join(dict.fromkeys(line for line in lines if line))
    if done.returncode:
        raise InputError(f"sbatch does not take the job: {said}")
    return said
