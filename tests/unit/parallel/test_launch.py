"""A rank is found from every launcher's variables, as those launchers set them."""

import pytest

from m3ae_scale.errors import InputError
from m3ae_scale.parallel.launch import find_ranks, first_host, is_launched
from m3ae_scale.parallel.spawn import MARK

TORCH = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node0", "MASTER_PORT": "29400",
}  # fmt: skip
SRUN = {
    "SLURM_JOB_ID": "4242", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_NODELIST": "gpu[007-009],gpu12", "SLURM_STEP_NODELIST": "gpu[008-009]",
}  # fmt: skip
MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "918273",
}  # fmt: skip


def test_a_plain_start_is_a_single_process() -> None:
    ranks = find_ranks({})
    assert (ranks.rank, ranks.world, ranks.local_rank, ranks.local_world) == (0, 1, 0, 1)
    assert ranks.master_addr == "127.0.0.1"
    assert ranks.source == "single process"
    assert not is_launched({})


@pytest.mark.parametrize(
    ("extra", "source"),
    [
        ({"TORCHELASTIC_RUN_ID": "x"}, "torchrun"),
        ({"CROSS_RANK": "1", "CROSS_SIZE": "2"}, "deepspeed"),
        ({MARK: "1"}, "m3ae-scale"),
        ({}, "RANK and WORLD_SIZE"),
    ],
)
def test_the_variables_of_torch(extra: dict[str, str], source: str) -> None:
    ranks = find_ranks({**TORCH, **extra})
    assert (ranks.rank, ranks.world, ranks.local_rank, ranks.local_world) == (5, 8, 1, 4)
    assert (ranks.master_addr, ranks.master_port, ranks.source) == ("node0", 29400, source)
    assert ranks.environment() == TORCH


def test_the_deepspeed_launcher_names_the_local_count_its_own_way() -> None:
    environ = {k: v for k, v in TORCH.items() if k != "LOCAL_WORLD_SIZE"} | {"LOCAL_SIZE": "2", "CROSS_RANK": "0"}
    assert find_ranks(environ).local_world == 2


def test_torchrun_inside_a_slurm_step_wins() -> None:
    assert find_ranks({**SRUN, **TORCH}).source == "RANK and WORLD_SIZE"


def test_srun() -> None:
    ranks = find_ranks(SRUN)
    assert (ranks.rank, ranks.world, ranks.local_rank, ranks.local_world) == (5, 8, 1, 4)
    assert (ranks.master_addr, ranks.source) == ("gpu008", "srun")
    assert is_launched(SRUN)


def test_all_tasks_of_a_step_agree_on_the_port_and_another_step_differs() -> None:
    port = find_ranks(SRUN).master_port
    assert port == find_ranks({**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}).master_port
    assert port != find_ranks({**SRUN, "SLURM_STEP_ID": "1"}).master_port
    assert port != find_ranks({**SRUN, "SLURM_JOB_ID": "4243"}).master_port
    assert 1024 < port < 32768
    assert find_ranks({**SRUN, "MASTER_PORT": "1234"}).master_port == 1234


def test_uneven_nodes_count_their_own_tasks() -> None:
    uneven = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2", "SLURM_PROCID": "7"}
    assert find_ranks(uneven).local_world == 2


def test_a_batch_script_without_srun_is_told_so() -> None:
    script = {k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"} | {"SLURM_PROCID": "0"}
    assert not is_launched(script)
    with pytest.raises(InputError, match=r"SLURM_NTASKS: found an allocation of 8 tasks.*write srun"):
        find_ranks(script)
    assert find_ranks({**script, "SLURM_NTASKS": "1"}).world == 1


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[1-4]", "node1"),
        ("node[03,07-09]", "node03"),
        ("gpu-a[007-012,20],login", "gpu-a007"),
        ("rack[2-3]-node[01-16],x", "rack2-node01"),
        ("n[5].cluster.org,m", "n5.cluster.org"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_mpirun() -> None:
    ranks = find_ranks(MPI)
    assert (ranks.rank, ranks.world, ranks.local_rank, ranks.local_world) == (1, 2, 1, 2)
    assert (ranks.master_addr, ranks.source) == ("127.0.0.1", "mpirun")
    assert ranks.master_port == find_ranks({**MPI, "OMPI_COMM_WORLD_RANK": "0"}).master_port


def test_mpirun_over_several_hosts_needs_an_address() -> None:
    spread = {**MPI, "OMPI_COMM_WORLD_SIZE": "4"}
    with pytest.raises(InputError, match="MASTER_ADDR: not set"):
        find_ranks(spread)
    assert find_ranks({**spread, "MASTER_ADDR": "head"}).master_addr == "head"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"RANK": "eight"}, "RANK: found 'eight', expected a whole number"),
        ({"RANK": "8"}, "found rank 8 of 8"),
        ({"LOCAL_RANK": "4"}, "local rank 4 of 4"),
    ],
)
def test_variables_that_cannot_be_are_named(change: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        find_ranks({**TORCH, **change})


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_a_missing_companion_is_named(missing: str) -> None:
    with pytest.raises(InputError, match=f"{missing}: not set"):
        find_ranks({k: v for k, v in TORCH.items() if k != missing})
