"""The arithmetic of a job: which nodes are used, and what sbatch is asked for."""

from pathlib import Path

import pytest

from m3ae_scale.config import load_experiment
from m3ae_scale.errors import InputError
from m3ae_scale.slurm.describe import describe
from m3ae_scale.slurm.job import Request, parse_nodes, shapes_of, usable_nodes
from m3ae_scale.slurm.submit import make_job


def quickstart(root: Path, *overrides: str):  # type: ignore[no-untyped-def]
    path = root / "configs" / "quickstart.yaml"
    return (*load_experiment(path, list(overrides)), path.parent)


@pytest.mark.parametrize(("text", "nodes"), [("1", (1, 1)), ("16", (16, 16)), ("2-8", (2, 8))])
def test_nodes_are_a_number_or_a_range(text: str, nodes: tuple[int, int]) -> None:
    assert parse_nodes(text) == nodes


@pytest.mark.parametrize("text", ["0", "two", "4-2", "2-", "-2", "1,2", "1.5", ""])
def test_other_nodes_are_a_mistake(text: str) -> None:
    with pytest.raises(InputError, match="--nodes: found"):
        parse_nodes(text)


def test_of_the_nodes_granted_those_are_used_on_which_the_batch_divides(root: Path) -> None:
    experiment, origins, folder = quickstart(root, "batch.global=1024")
    # micro 64 x 2 ranks a node: 1024 divides by 128 x 1, 2, 4 and 8
    assert [usable_nodes(experiment, origins, folder, n, 2) for n in range(1, 11)] == [1, 2, 2, 4, 4, 4, 4, 8, 8, 8]


def test_every_shape_has_the_same_global_batch(root: Path) -> None:
    experiment, origins, folder = quickstart(root, "batch.global=1024")
    shapes = shapes_of(experiment, origins, folder, Request(1, 8, 2, 2), vocabulary=2048)
    assert list(shapes) == list(range(1, 9))
    for granted, shape in shapes.items():
        plan = shape.resolved.plan
        assert shape.nodes <= granted and plan.micro_batch * plan.accumulation * plan.data == 1024
    text = "\n".join(describe(shapes))
    assert "on 4 nodes (of up to 7: the global batch divides on no more)" in text
    assert "1024 = micro 64 x data 8 x accumulation 2" in text
    assert text.count("projected") == 4


def test_what_was_asked_for_must_divide(root: Path) -> None:
    experiment, origins, folder = quickstart(root)
    with pytest.raises(InputError, match=r"batch.global 128 does not divide by data parallel 3"):
        shapes_of(experiment, origins, folder, Request(1, 3, 1, 1), vocabulary=2048)
    split, origins, folder = quickstart(root, "parallel.tensor=4")
    with pytest.raises(InputError, match=r"parallel.tensor 4 does not divide the 2 ranks"):
        shapes_of(split, origins, folder, Request(1, 1, 2, 2), vocabulary=2048)


def test_a_token_budget_needs_no_data_here(root: Path) -> None:
    drop = "engine.overrides.train_micro_batch_size_per_gpu=null"
    experiment, origins, folder = quickstart(root, "batch.micro_tokens=4096", drop)
    (shape,) = shapes_of(experiment, origins, folder, Request(2, 2, 4, 4), vocabulary=2048).values()
    assert "micro about 16" in "\n".join(describe({2: shape}))


def test_offloading_shows_on_the_host(root: Path) -> None:
    experiment, origins, folder = quickstart(root, "engine.deepspeed=zero2_offload_bf16", "engine.overrides={}")
    shapes = shapes_of(experiment, origins, folder, Request(1, 1, 2, 2), vocabulary=2048)
    assert "on the host" in "\n".join(describe(shapes)) and "copies for the offloaded" in "\n".join(describe(shapes))
    part = ("engine.deepspeed=zero3_offload_bf16", "engine.overrides.zero_optimization.offload_optimizer.ratio=0.5")
    divided = shapes_of(*quickstart(root, *part), Request(1, 1, 2, 2), vocabulary=2048)[1].states
    assert divided.device == pytest.approx(0.5 * (divided.optimizer + divided.copies)) != 0


def test_the_command_is_complete(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("M3AE_SITE", raising=False)
    experiment, _, _ = quickstart(root, "seed=7")
    script = root / "slurm" / "pretrain.sbatch"
    job = make_job(experiment, "q.yaml", ["seed=7"], Request(2, 4, 8, 8), script, ["--account=me"])
    assert job.command == [
        "sbatch", "--job-name=quickstart", "--nodes=2-4", "--mincpus=16", "--output=runs/quickstart/slurm-%j.out",
        "--gpus-per-node=8", "--account=me", str(script), "q.yaml", "--set=seed=7",
    ]  # fmt: skip
    assert job.variables == {"M3AE_SITE": str(root / "slurm" / "site.sh")}
    on_cpus = make_job(experiment, "q.yaml", [], Request(2, 2, 3, 0), script, chained=True)
    assert {"--no-requeue", "--dependency=singleton", "--nodes=2"} <= set(on_cpus.command)
    assert not [option for option in on_cpus.command if "gpus" in option]
    assert on_cpus.variables["M3AE_TASKS_PER_NODE"] == "3" and "M3AE_CHAIN" in on_cpus.variables
    assert str(on_cpus).startswith("M3AE_TASKS_PER_NODE=3 M3AE_CHAIN=quickstart-")
