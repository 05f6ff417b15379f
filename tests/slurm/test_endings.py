"""What the script does when a run ends in any other way. The container it runs in makes the ends: see CONTAINER."""

import json
import re
from pathlib import Path

import pytest
from cluster import ROOT, Cluster, wait_for

# Stands where a site names its container, before each command: it runs what is not training, and lets training end
# with the exit codes that the file `codes` lists, one a start; "wait" waits for a signal and ends with 75.
CONTAINER = """#!/bin/bash
[ "$2" = pretrain ] || exec "$@"
code=$(head -1 codes) && sed -i 1d codes
[ "$code" != wait ] || { trap 'exit 75' USR1 TERM; sleep 120 & wait; }
exit "$code"
"""


@pytest.fixture
def site(place: Path, tmp_path: Path) -> dict[str, str]:
    container = tmp_path / "container"
    container.write_text(CONTAINER)
    container.chmod(0o755)
    file = tmp_path / "site.sh"
    file.write_text((ROOT / "slurm" / "site.sh").read_text() + f"\nCONTAINER=({container})\n")
    return {"M3AE_SITE": str(file)}


def submit(
    cluster: Cluster, place: Path, site: dict[str, str], name: str, codes: list[str], *options: str
) -> list[str]:
    (place / "codes").write_text("".join(f"{code}\n" for code in codes))
    arguments = ["tiny.yaml", "--nodes=1", "--gpus-per-node=0", "--set", f"name={name}", *options]
    said = cluster.run("m3ae-scale", "slurm", "submit", *arguments, cwd=place, **site)
    return re.search(r"submitted +([\d ]+);", said)[1].split()


def starts(place: Path, name: str) -> list[dict]:
    lines = (place / "runs" / name / "starts.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_that_only_crashes_is_given_up(cluster: Cluster, place: Path, site: dict[str, str]) -> None:
    (job,) = submit(cluster, place, site, "crashing", ["1"] * 9)
    ended = cluster.await_job(job, "FAILED")
    assert (ended["Restarts"], ended["ExitCode"]) == ("3", "2:0")
    assert [row["restart"] for row in starts(place, "crashing")] == [0, 1, 2]
    output = (place / "runs" / "crashing" / f"slurm-{job}.out").read_text()
    assert "error: runs/crashing: 3 starts without a checkpoint so far have gained nothing" in output
    (again,) = submit(cluster, place, site, "crashing", ["0"])  # submitted anew, it gets its tries anew
    assert cluster.await_job(again, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"


def test_a_mistake_is_not_tried_again(cluster: Cluster, place: Path, site: dict[str, str]) -> None:
    (job,) = submit(cluster, place, site, "mistaken", ["2"])
    ended = cluster.await_job(job, "FAILED", "COMPLETED")
    assert (ended["JobState"], ended["Restarts"], ended["ExitCode"]) == ("FAILED", "0", "2:0")


@pytest.mark.parametrize("way", ["cancel", "USR1", "TERM", "USR1 for good"])
def test_who_asks_a_job_to_stop_decides_whether_it_comes_back(
    way: str, cluster: Cluster, place: Path, site: dict[str, str]
) -> None:
    name = f"asked-{way}".replace(" ", "-")
    (job,) = submit(cluster, place, site, name, ["wait", "0"])
    wait_for("the start", lambda: (place / "codes").read_text() == "0\n", lambda: cluster.tell(job))
    if way == "cancel":
        cluster.run("scancel", job)
        assert cluster.await_job(job, "CANCELLED")["Restarts"] == "0"
        return
    if way == "USR1 for good":
        cluster.run("scontrol", "update", f"jobid={job}", "requeue=0")
    cluster.run("scancel", "--batch", f"--signal={way.split()[0]}", job)
    ended = cluster.await_job(job, "COMPLETED", "FAILED")
    if way == "USR1 for good":
        assert (ended["Restarts"], ended["ExitCode"]) == ("0", "75:0")
    else:
        assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), cluster.tell(job)


def test_a_chain_goes_on_without_requeue_until_the_run_is_done(
    cluster: Cluster, place: Path, site: dict[str, str]
) -> None:
    first, second, third = submit(cluster, place, site, "chained", ["75", "0", "1"], "--chain=3")
    assert cluster.await_job(first, "FAILED")["ExitCode"] == "75:0"
    assert cluster.await_job(second, "COMPLETED", "FAILED")["JobState"] == "COMPLETED"
    assert cluster.await_job(third, "CANCELLED")["RunTime"] == "00:00:00"
    rows = starts(place, "chained")
    assert [row["job"] for row in rows] == [first, second]
    assert rows[0]["submission"] == rows[1]["submission"]


def test_slurm_refuses_in_one_line(cluster: Cluster, place: Path) -> None:
    options = ("--nodes=1", "--gpus-per-node=4", "--", "--partition=none")
    said = cluster.run("m3ae-scale", "slurm", "submit", "tiny.yaml", *options, cwd=place, code=2)
    (error,) = [line for line in said.splitlines() if "error" in line]
    assert error.startswith("error: sbatch does not take the job: ")
