"""A sweep as job arrays: no cell without a job, none with nodes that it does not use."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.errors import InputError
from m3ae_scale.slurm.sweep import make_arrays, make_report, ranges

SCRIPT = Path("slurm/scaling_sweep.sbatch")


def arrays(cells: dict[int, list[int]], per_node: int, gpus: bool) -> list[str]:
    made = make_arrays("sweep.yaml", "try", Path("runs/try"), cells, per_node, gpus, SCRIPT, ["--partition=a"])
    return [str(job) for job in made]


@given(st.sets(st.integers(1, 60), min_size=1))
def test_ranges_hold_just_the_numbers(numbers: set[int]) -> None:
    read: set[int] = set()
    for part in ranges(list(numbers)).split(","):
        first, _, last = part.partition("-")
        read |= set(range(int(first), int(last or first) + 1))
    assert read == numbers
    assert len(ranges(list(numbers)).split(",")) == sum(number - 1 not in numbers for number in numbers)


def test_each_number_of_devices_gets_the_nodes_it_needs() -> None:
    small, node, many = arrays({1: [1, 2, 3], 16: [6], 8: [4]}, per_node=8, gpus=True)
    assert "--nodes=1 --mincpus=1 --array=1-3" in small and "--gpus-per-node=1 " in small
    assert "--nodes=1 --mincpus=8 --array=4" in node and "--gpus-per-node=8 " in node
    assert "--nodes=2 --mincpus=8 --array=6" in many and "--gpus-per-node=8 " in many
    assert all(line.endswith("--partition=a slurm/scaling_sweep.sbatch sweep.yaml") for line in (small, node, many))


def test_without_gpus_the_script_is_told_the_ranks_of_a_node() -> None:
    (job,) = arrays({4: [1]}, per_node=2, gpus=False)
    assert job.startswith("M3AE_TASKS_PER_NODE=2 ") and "--nodes=2" in job and "gpus" not in job


def test_a_number_of_devices_that_fills_no_node_is_refused() -> None:
    with pytest.raises(InputError, match="cells of 12 devices, which fill no whole number of nodes of 8"):
        arrays({12: [1]}, per_node=8, gpus=True)


def test_the_report_waits_for_every_array() -> None:
    job = str(make_report("try", Path("runs/try"), Path("slurm/evaluate.sbatch"), ["7", "8"]))
    assert "--dependency=afterany:7:8" in job
    assert job.endswith("evaluate.sbatch report runs/try/results.jsonl --output runs/try/report.html")
