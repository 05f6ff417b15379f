"""Evaluation as a user runs it: over two processes it finds what one process finds."""

import json
import shutil
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from safetensors.numpy import load_file

from m3ae_scale.data.synthesize import Synthesis, synthesize


def test_two_processes_extract_what_one_does_and_the_outcome_is_tracked(place: Path, command, trained: Path) -> None:
    for name, seed in (("labelled", 7), ("labelled-test", 8)):
        settings = Synthesis(samples=0, image_only=80, label="background", seed=seed, vocabulary=200)
        synthesize(place / name, settings, processes=1)
    words = ("--train", "labelled/train/image", "--test", "labelled-test/train/image", "--pool", "mean")
    found = {}
    for nproc in ("2", "1"):
        shutil.rmtree(trained / "features", ignore_errors=True)
        command("eval", "linear-probe", "runs/whole", *words, "--epochs", "30", "--nproc", nproc)
        (result,) = trained.glob("evaluation/linear-probe-*/result.json")
        blocks = [load_file(path)["mean"] for path in sorted(trained.glob("features/*/*.safetensors"))]
        found[nproc] = (json.loads(result.read_text()), blocks)
    for two, one in zip(found["2"][1], found["1"][1], strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)
    top1 = found["2"][0]["metrics"]["top1"]
    assert top1 > 2 / 12  # twelve backgrounds
    client = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("m3ae_scale").experiment_id], "tags.verb = 'linear-probe'")
    assert runs and runs[0].data.tags["mlflow.parentRunId"] == (trained / "mlflow_run_id").read_text().strip()
    assert runs[0].data.metrics["top1"] == found["2"][0]["metrics"]["top1"]
    assert client.get_run((trained / "mlflow_run_id").read_text().strip()).info.status == "FINISHED"


def test_fine_tuning_over_two_processes_goes_where_one_goes(place: Path, command, trained: Path) -> None:
    settings = Synthesis(samples=0, image_only=48, label="background", seed=9, vocabulary=200)
    synthesize(place / "few", settings, processes=1)
    words = (
        "--train",
        "few/train/image",
        "--test",
        "few/train/image",
        "--epochs",
        "2",
        "--batch",
        "16",
        "--warmup",
        "0",
    )
    losses = []
    for nproc in ("2", "1"):
        command("eval", "finetune", "runs/whole", *words, "--nproc", nproc)
        (result,) = trained.glob("evaluation/finetune-*/result.json")
        losses.append(json.loads(result.read_text())["curves"]["loss"])
        shutil.rmtree(result.parent)
    assert len(losses[0]) == 2
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
