"""Killed at 2 ranks, resumed on 1, killed again, resumed on 3: the samples and losses of the undisturbed run."""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import yaml

from m3ae_scale.data.synthesize import Synthesis, synthesize
from m3ae_scale.parallel.launch import Ranks
from m3ae_scale.parallel.spawn import free_port
from m3ae_scale.training.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]
STEPS, GLOBAL_BATCH = 16, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elastic")
    synthesize(folder / "data", Synthesis(samples=60, image_only=20, text_only=20, validation=0, seed=3), processes=1)
    experiment = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    experiment["model"]["drop_path"] = 0.1
    experiment["data"]["tokenizer"] = "data/vocab.txt"
    experiment["data"]["validation"] = []
    for source in experiment["data"]["sources"]:
        source["shards"] = source["shards"].replace("data/quickstart", "data")
    experiment["batch"] = {"global": GLOBAL_BATCH}
    experiment["train"] = {"length": f"{STEPS} steps"}
    experiment["run"]["log_every"] = 1
    (folder / "elastic.yaml").write_text(yaml.safe_dump(experiment))
    return folder


def run(folder: Path, name: str, world: int, die_after: int = 10_000) -> list[list[str]]:
    """Run `world` ranks until the end or until they kill themselves; return the samples of each step that began."""
    port = free_port()
    ranks = []
    for rank in range(world):
        script = [sys.executable, str(ROOT / "tests" / "distributed" / "recorded_pretrain.py")]
        script += ["elastic.yaml", name, str(GLOBAL_BATCH // world), str(die_after)]
        environment = os.environ | Ranks(rank, world, rank, world, "127.0.0.1", port, "test").environment()
        with open(folder / f"{name}_{world}_{rank}.log", "w") as log:
            ranks.append(subprocess.Popen(script, cwd=folder, env=environment, stdout=log, stderr=log))
    codes = [process.wait(timeout=200) for process in ranks]
    expected = -9 if die_after < 10_000 else 0
    tail = (folder / f"{name}_{world}_0.log").read_text()[-2000:]
    assert all(code != 0 if expected else code == 0 for code in codes), f"{codes}\n{tail}"
    shares = []
    for rank in range(world):
        file = folder / f"consumed_{name}_{os.getpid()}_{rank}.jsonl"
        shares.append([json.loads(line) for line in file.read_text().splitlines()])
        file.unlink()
    return [list(chain.from_iterable(step)) for step in zip(*shares, strict=False)]


def curve(folder: Path, name: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(folder / "runs" / name / "metrics.jsonl") if "loss" in row}


def test_two_then_one_then_three_ranks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(folder, "whole", 2)
    assert len(whole) == STEPS

    first = run(folder, "elastic", 2, die_after=6)  # killed after step 6: resumes at the checkpoint of step 4
    second = run(folder, "elastic", 1, die_after=7)  # killed after step 11: resumes at 8
    third = run(folder, "elastic", 3)
    assert [len(first), len(second), len(third)] == [6, 7, STEPS - 8]

    consumed = first[:4] + second[:4] + third
    for step, (ours, theirs) in enumerate(zip(consumed, whole, strict=True), start=1):
        assert sorted(ours) == sorted(theirs), f"step {step} took other samples"
    assert sorted(first[4] + first[5]) == sorted(whole[4] + whole[5])  # what was lost was in order, too

    ours, theirs = curve(folder, "elastic"), curve(folder, "whole")
    assert list(ours) == list(theirs) == list(range(1, STEPS + 1))
    difference = max(abs(ours[step] - theirs[step]) / theirs[step] for step in theirs)
    with capsys.disabled():
        print(f"\nkilled at 2, 1 ranks, finished on 3: same samples, loss differs by at most {difference:.1e}")
    assert difference <= 2e-5
    assert np.isfinite(list(ours.values())).all()
