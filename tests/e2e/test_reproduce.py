"""A claim as a user reproduces it: real pretraining and probes, but small; two commands share its cells out."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ARMS = {"two": {}, "one": {"set": {"model.encoder.depth": 1}}, "supervised": {"supervised": True}}
CLAIM = {
    "claim": "size",
    "statement": "Two layers are better than one, and than labels",
    "source": "no paper",
    "arms": ARMS,
    "compare": [
        {"better": "two", "worse": "one"},
        {"better": "two", "worse": "supervised", "measure": "knn_auroc"},
    ],
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the claim and a scale: the shipped one of minutes, with less of everything."""
    folder = tmp_path_factory.mktemp("reproduce")
    scale = yaml.safe_load((ROOT / "configs" / "claims" / "scales" / "minutes.yaml").read_text())
    scale |= {"scale": "seconds", "seeds": [0, 1]}
    scale["data"]["scenes"]["samples"] = 64
    for name in ("labelled", "test", "shifted", "unknown"):
        scale["data"][name]["image_only"] = 48
    scale["data"] = {name: settings for name, settings in scale["data"].items() if name not in ("few", "unpaired")}
    scale["experiment"]["model"]["encoder"] = {"dim": 32, "depth": 2, "heads": 2, "mlp_dim": 64}
    scale["experiment"]["batch"] = {"global": 16}
    scale["experiment"]["engine"]["overrides"] = {"train_micro_batch_size_per_gpu": 16}
    scale["experiment"]["train"] = {"length": "3 steps", "warmup": "1 steps"}
    scale["probe"]["linear"] = {"epochs": 2, "warmup": 1}
    scale["supervised"] |= {"epochs": 1, "warmup": 0, "batch": 16}
    (folder / "claim.yaml").write_text(yaml.safe_dump(CLAIM, sort_keys=False))
    (folder / "scale.yaml").write_text(yaml.safe_dump(scale, sort_keys=False))
    return folder


def start(folder: Path, environment: dict[str, str], *more: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "m3ae_scale.cli.main", "reproduce", "claim.yaml", "--scale", "scale.yaml", *more]
    return subprocess.Popen(
        words, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def test_two_commands_share_the_cells_and_a_third_keeps_them(written: Path, environment: dict[str, str]) -> None:
    commands = finish(start(written, environment, "--commands"))
    assert commands.count("m3ae-scale slurm submit") == 4  # those that pretrain, two seeds each; the data is there

    said = [finish(process) for process in [start(written, environment) for _ in range(2)]]
    cells = [re.findall(r"\((ran|kept), \d+ s, (\w+)\)", one) for one in said]
    assert all(len(set(key for _, key in one)) == 6 for one in cells)  # each of the two tells of every cell
    ran = [key for one in cells for state, key in one if state == "ran"]
    assert len(ran) == len(set(ran)) == 6  # and none was run by both
    assert all(any(state == "ran" for state, _ in one) for one in cells)  # nor all by one

    told = json.loads((written / "runs" / "claims" / "seconds" / "size.json").read_text())
    assert {arm: sorted(seeds) for arm, seeds in told["by_seed"].items()} == {arm: ["0", "1"] for arm in ARMS}
    for seeds in told["by_seed"].values():
        for metrics in seeds.values():
            assert 0 <= metrics["top1"] <= 1 and 0 <= metrics["knn_auroc"] <= 1 and 0 <= metrics["shifted_top1"] <= 1
    difference = told["comparisons"][0]["difference"]
    by_seed = told["by_seed"]
    gains = [by_seed["two"][seed]["top1"] - by_seed["one"][seed]["top1"] for seed in ("0", "1")]
    assert difference["mean"] == pytest.approx(sum(gains) / 2) and difference["n"] == 2
    assert "Two layers are better than one" in (written / "runs" / "claims" / "seconds" / "size.html").read_text()

    again = finish(start(written, environment))
    assert again.count("(kept, ") == 6 and "(ran, " not in again
    assert "m3ae-scale slurm submit" not in finish(start(written, environment, "--commands"))


@pytest.mark.parametrize(
    ("changes", "more", "expected"),
    [
        ({}, ("--table", "--folder", "empty"), r"empty: nothing of the claim size is measured .* without --table"),
        ({"batch": {"global": 48}}, ("--folder", "batch"), r"batch\.global 48 does not divide by micro 64"),
        ({"optimiser": {"lr": 1e-3}}, ("--folder", "key"), r"unknown key .optimiser.; did you mean .optimizer."),
    ],
)
def test_mistakes_are_one_line(
    written: Path, environment: dict[str, str], changes: dict, more: tuple[str, ...], expected: str
) -> None:
    scale = yaml.safe_load((written / "scale.yaml").read_text())
    scale["experiment"] |= {"engine": {"deepspeed": "zero0_fp32"}} | changes
    (written / "wrong.yaml").write_text(yaml.safe_dump(scale))
    process = start(written, environment, "--scale", "wrong.yaml", *more)
    said, _ = process.communicate(timeout=120)
    lines = [line for line in said.splitlines() if not line.startswith("data ")]
    assert process.returncode == 2 and len(lines) == 1 and re.search(expected, lines[0]), said
