"""slurm/local_cluster: one command starts, mends and ends it, whatever it finds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, start_or_skip, wait_for


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    cluster = start_or_skip(Cluster(tmp_path / "state", port=28000))
    yield cluster
    cluster.local("stop")


def pids(cluster: Cluster) -> dict[str, str]:
    return {path.stem: path.read_text().strip() for path in cluster.state.glob("*.pid")}


def test_started_again_it_stays_and_mended_it_has_all_nodes(own: Cluster) -> None:
    before = pids(own)
    assert set(before) == {"slurmctld", "node1", "node2"}
    done = own.local("start", "2")
    assert done.stdout == f"export SLURM_CONF='{own.state}/slurm.conf'\n"
    assert pids(own) == before
    own.run("sbatch", "--nodes=2", "--wrap=sleep 600", cwd=own.state)
    wait_for("the job", lambda: "node2 mixed" in own.nodes())
    assert own.local("fail", "node2").returncode == 0
    assert own.local("start", "2").returncode == 0
    after = pids(own)
    assert after["node1"] == before["node1"] and after["node2"] != before["node2"]
    wait_for("both nodes", lambda: not [node for node in own.nodes() if "down" in node or "*" in node])


def test_each_node_has_its_gpus(own: Cluster) -> None:
    said = own.run("srun", "--nodes=2", "--gpus-per-node=2", "sh", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES")
    assert sorted(said.split("\n")[:2]) == ["node1 0,1", "node2 0,1"]


def test_what_a_crash_left_is_no_hindrance_and_another_shape_begins_anew(own: Cluster) -> None:
    for node in ("slurmctld", "node1", "node2"):
        Path("/proc", pids(own)[node], "status").read_text()
        own.run("kill", "-KILL", pids(own)[node])
    own.run("kill", "-KILL", (own.state / "munge" / "pid").read_text().strip())
    assert own.local("start", "2").returncode == 0
    assert [line.split()[0] for line in own.nodes()] == ["node1", "node2"]
    assert own.local("start", "3", "--gpus", "0").returncode == 0
    assert own.nodes() == ["node1 idle", "node2 idle", "node3 idle"]


def test_stop_leaves_nothing(own: Cluster) -> None:
    running = [Path("/proc", pid) for pid in pids(own).values()]
    assert own.local("stop").returncode == 0
    assert not own.state.exists()
    for process in running:
        assert not process.exists() or "State:\tZ" in (process / "status").read_text()
    assert own.local("stop").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "how many nodes?"),
        (("two",), "found 'two'"),
        (("2", "--gpu", "2"), "unknown option --gpu"),
        (("0",), "at least 1"),
    ],
)
def test_a_mistake_is_one_line(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = Cluster(tmp_path / "state", port=29000).local("start", *arguments)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    cluster = Cluster(tmp_path, port=29000)
    assert "holds other things" in cluster.local("start", "1").stderr
    cluster.local("stop")
    assert (tmp_path / "thesis.tex").exists()
