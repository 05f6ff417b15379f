"""Real training by the shipped script on a real Slurm cluster: whatever happens to the job, the curve is the same."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from cluster import Cluster, wait_for

from m3ae_scale.training.metrics_file import read_metrics

STEPS = 30


def submit(cluster: Cluster, place: Path, name: str, *options: str) -> str:
    """Submit tiny.yaml as a run called `name`; returns the number of its job."""
    arguments = ["tiny.yaml", "--gpus-per-node=0", "--set", f"name={name}", "--time=10", *options]
    said = cluster.run("m3ae-scale", "slurm", "submit", *arguments, cwd=place)
    assert "projected" in said and "would start" in said
    return re.search(r"submitted +(\d+)", said)[1]


def losses(run: Path) -> np.ndarray:
    rows = {row["step"]: row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row}
    assert list(rows) == list(range(1, STEPS + 1))
    return np.array(list(rows.values()))


def freeze_at(cluster: Cluster, run: Path, job: str, step: int) -> None:
    """Hold the tasks of a job once they are past `step`, so that what is to happen to them happens in the middle."""

    def reached() -> bool:
        metrics = run / "metrics.jsonl"
        return metrics.exists() and any(row["step"] >= step for row in read_metrics(metrics))

    wait_for(f"step {step} of {run}", reached, lambda: cluster.tell(job))
    cluster.run("scancel", "--signal=STOP", job)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, place: Path) -> Path:
    """The run folder of a training on two nodes that nothing happened to."""
    job = submit(cluster, place, "undisturbed", "--nodes=2")
    cluster.await_job(job, "COMPLETED", "FAILED")
    run = place / "runs" / "undisturbed"
    output = (run / f"slurm-{job}.out").read_text()
    assert "2 ranks by srun" in output and "exit code 0" in output, output
    return run


def test_two_nodes_train_by_the_shipped_script(undisturbed: Path) -> None:
    curve = losses(undisturbed)
    assert curve[-5:].mean() < curve[:5].mean()


def test_before_its_time_is_up_a_job_saves_and_is_queued_again(
    cluster: Cluster, place: Path, undisturbed: Path
) -> None:
    job = submit(cluster, place, "timed", "--nodes=2")
    run = place / "runs" / "timed"
    output = run / f"slurm-{job}.out"
    freeze_at(cluster, run, job, 3)
    cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=2")  # the warning comes two minutes before: at once
    wait_for("the early signal", lambda: "asked to stop (USR1)" in output.read_text(), lambda: cluster.tell(job))
    cluster.run("scancel", "--signal=CONT", job)
    wait_for("the requeue", lambda: "goes back to the queue" in output.read_text(), lambda: cluster.tell(job))
    stopped_at = int(re.search(r"stopped at step (\d+)", output.read_text())[1])
    assert 3 < stopped_at < STEPS
    run_id = (run / "mlflow_run_id").read_text()

    cluster.await_job(job, "PENDING")
    cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=10")
    assert cluster.await_job(job, "COMPLETED")["Restarts"] == "1"
    assert f"resumed at step {stopped_at}" in output.read_text()
    assert (run / "mlflow_run_id").read_text() == run_id
    np.testing.assert_allclose(losses(run), losses(undisturbed), rtol=2e-5)


def test_when_a_node_dies_the_run_goes_on_on_those_left(cluster: Cluster, place: Path, undisturbed: Path) -> None:
    job = submit(cluster, place, "bereft", "--nodes=1-2")
    run = place / "runs" / "bereft"
    freeze_at(cluster, run, job, 7)
    assert cluster.local("fail", "node2").returncode == 0
    cluster.run("scancel", "--signal=CONT", job)
    ended = cluster.await_job(job, "COMPLETED", "FAILED")
    assert (ended["JobState"], ended["NumNodes"]) == ("COMPLETED", "1"), cluster.tell(job)
    output = (run / f"slurm-{job}.out").read_text()
    assert "2 ranks by srun" in output and "1 ranks by srun" in output and "resumed at step 5" in output
    np.testing.assert_allclose(losses(run), losses(undisturbed), rtol=2e-5)
    cluster.local("start", "2")
    wait_for("node2", lambda: "node2 idle" in cluster.nodes())


def test_a_sweep_ends_in_a_report(cluster: Cluster, place: Path) -> None:
    sweep = {
        "name": "try",
        "experiment": "tiny.yaml",
        "set": {
            "data.validation": [{"name": "held-out", "shards": "data/train/paired"}],
            "engine.overrides": {"train_micro_batch_size_per_gpu": None},
            "run.checkpoint_every": 0,
            "run.validation_batches": 1,
        },
        "grids": [{"sizes": ["tiny"], "samples": [24], "devices": [1, 2]}],
    }
    (place / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    said = cluster.run("m3ae-scale", "slurm", "sweep", "sweep.yaml", "--gpus-per-node=0", cwd=place)
    *arrays, report = re.search(r"submitted +([\d ]+);", said)[1].split()
    assert len(arrays) == 2 and "--dependency=afterany:" + ":".join(arrays) in said
    for job in (*(f"{array}_{cell}" for cell, array in enumerate(arrays, start=1)), report):
        cluster.await_job(job, "COMPLETED", "FAILED")
    folder = place / "runs" / "scaling" / "try"
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert sorted(row["devices"] for row in rows) == [1, 2], [cluster.tell(array) for array in arrays]
    losses = [row["loss"] for row in rows]
    assert losses[0] == pytest.approx(losses[1], rel=2e-5)  # the same training, on one node and on two
    page = (folder / "report.html").read_text()
    assert "Strong and weak scaling" in page and "No law is fitted" in page, cluster.tell(report)
    said = cluster.run("m3ae-scale", "slurm", "sweep", "sweep.yaml", "--gpus-per-node=0", cwd=place)
    assert said == "cells       0 open of 2\n"  # what is done is not submitted again
