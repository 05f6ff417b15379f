"""One cluster of two nodes for all tests of this folder, and a folder to run in."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import Cluster, start_or_skip

from m3ae_scale.data.synthesize import Synthesis, synthesize

STEPS = 30


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = start_or_skip(Cluster(tmp_path_factory.mktemp("slurm") / "state", port=27000))
    yield running
    running.local("stop")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and tiny.yaml: 30 steps of 8 samples, a checkpoint every 5."""
    folder = tmp_path_factory.mktemp("submitted")
    synthesize(folder / "data", Synthesis(samples=96, image_only=0, text_only=0, validation=0, seed=1), processes=1)
    experiment = {
        "name": "tiny",
        "model": {"size": "tiny", "image_size": 32, "patch": 8, "text_length": 16},
        "data": {
            "sources": [{"name": "pairs", "shards": "data/train/paired"}],
            "tokenizer": "data/vocab.txt",
            "workers": 0,
        },
        "batch": {"global": 8},
        "optimizer": {"lr": 2e-2},
        "train": {"length": f"{STEPS} steps", "warmup": "4 steps"},
        "engine": {"deepspeed": "zero1_fp32", "overrides": {"train_micro_batch_size_per_gpu": 2}},
        "run": {"log_every": 1, "validate_every": 0, "pictures_every": 0, "checkpoint_every": 5},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return folder
