"""A sweep as SLURM jobs: an array for each number of devices, so that none holds idle nodes, then a report."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from m3ae_scale.errors import InputError
from m3ae_scale.slurm.submit import SITE, TASKS, Job


def make_arrays(
    path: str,
    name: str,
    folder: Path,
    cells: Mapping[int, Sequence[int]],
    per_node: int,
    gpus: bool,
    script: Path,
    options: Sequence[str] = (),
) -> list[Job]:
    """Make an array for each entry of `cells`, devices -> numbers of cells, of the sweep `name` read from `path`.

    per_node: ranks that a node has room for, one a GPU where `gpus`. folder: the sweep's, for the output of its tasks.
    Raises InputError where a number of devices fills no whole number of nodes.
    """
    jobs = []
    for devices, numbers in sorted(cells.items()):
        tasks = min(devices, per_node)
        if devices % tasks:
            raise InputError(
                f"{path}: found cells of {devices} devices, which fill no whole number of nodes of {per_node}; "
                f"change devices, or --gpus-per-node and --tasks-per-node"
            )
        command = [
            "sbatch",
            f"--job-name={name}-{devices}x",
            f"--nodes={devices // tasks}",
            f"--mincpus={tasks}",
            f"--array={ranges(numbers)}",
            f"--output={folder}/slurm-%A_%a.out",
            *([f"--gpus-per-node={tasks}"] if gpus else []),
            *options,
            str(script),
            path,
        ]
        jobs.append(Job(command, {**({} if gpus else {TASKS: str(tasks)}), **_site(script)}))
    return jobs


def make_report(name: str, folder: Path, script: Path, after: Sequence[str], options: Sequence[str] = ()) -> Job:
    """Make the job that writes `folder`/report.html once the jobs `after` have ended, however they ended."""
    command = [
        "sbatch",
        f"--job-name={name}-report",
        f"--dependency=afterany:{':'.join(after)}",
        "--cpus-per-task=1",
        "--time=00:30:00",
        f"--output={folder}/slurm-report-%j.out",
        *options,
        str(script),
        *("report", f"{folder}/results.jsonl", "--output", f"{folder}/report.html"),
    ]
    return Job(command, _site(script))


def ranges(numbers: Sequence[int]) -> str:
    """Write numbers as SLURM's arrays want them: 1, 2, 3, 7 as 1-3,7."""
    parts = []
    for _, group in itertools.groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def _site(script: Path) -> dict[str, str]:
    """Tell the script where site.sh is, where that is not where it looks."""
    site = script.with_name("site.sh")
    there = site.is_file() and not Path("slurm/site.sh").is_file() and SITE not in os.environ
    return {SITE: str(site.resolve())} if there else {}
