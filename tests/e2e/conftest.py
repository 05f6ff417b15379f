"""Real shards and a small experiment over them, made once for all end-to-end tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from m3ae_scale.data.synthesize import Synthesis, synthesize

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ.copy()  # before any test in this process opens groups and so becomes a rank
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ (pairs, images, texts, a vocabulary) and tiny.yaml: 12 samples a step, ZeRO-3."""
    folder = tmp_path_factory.mktemp("e2e")
    settings = Synthesis(samples=96, image_only=24, text_only=24, validation=12, seed=1)
    synthesize(folder / "data", settings, processes=1)
    experiment = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    experiment["name"] = "tiny"
    experiment["model"]["drop_path"] = 0.1
    experiment["data"]["workers"] = 1
    experiment["data"]["tokenizer"] = "data/vocab.txt"
    for source in experiment["data"]["sources"] + experiment["data"]["validation"]:
        source["shards"] = source["shards"].replace("data/quickstart", "data")
    experiment["batch"] = {"global": 12}
    experiment["optimizer"]["lr"] = 6e-2  # per 256 samples, for a batch of 12
    experiment["engine"]["overrides"]["train_micro_batch_size_per_gpu"] = 3
    experiment["train"] = {"length": "12 steps", "warmup": "2 steps"}
    experiment["run"] = {"log_every": 1, "validate_every": 6, "pictures_every": 12, "checkpoint_every": 4}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return folder


@pytest.fixture(scope="session")
def command(place: Path) -> Command:
    """Run `m3ae-scale ...` in the folder of `place`; fails unless the exit code is `code` (default 0)."""

    def run(*arguments: str, code: int = 0, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        verb = before or (sys.executable, "-m", "m3ae_scale.cli.main")
        done = subprocess.run(
            [*verb, *arguments], cwd=place, capture_output=True, text=True, timeout=240, env=ENVIRONMENT
        )
        assert done.returncode == code, f"{arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The variables of a fresh process."""
    return ENVIRONMENT


@pytest.fixture(scope="session")
def trained(place: Path, command: Command) -> Path:
    """The run folder of an undisturbed training on two processes."""
    done = command("pretrain", "tiny.yaml", "--nproc", "2", "--set", "name=whole")
    assert "finished" in done.stdout
    return place / "runs" / "whole"
