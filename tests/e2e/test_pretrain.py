"""The main job, as a user runs it: shards in, a trained encoder out, every step of the way through the command line."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

import m3ae_scale
from m3ae_scale.training.metrics_file import read_metrics

STEPS = 12


def losses(run: Path) -> np.ndarray:
    rows = {row["step"]: row["loss"] for row in read_metrics(run / "metrics.jsonl") if "loss" in row}
    assert list(rows) == list(range(1, STEPS + 1))
    return np.array(list(rows.values()))


def test_the_loss_falls_and_everything_is_left_in_the_run_folder(trained: Path) -> None:
    curve = losses(trained)
    assert curve[-4:].mean() < 0.8 * curve[:4].mean()
    validation = [row for row in read_metrics(trained / "metrics.jsonl") if "validation_loss" in row]
    assert [row["step"] for row in validation] == [0, 6, 12]
    assert validation[-1]["validation_loss"] < validation[0]["validation_loss"]
    for name in ("experiment.yaml", "deepspeed.json", "provenance.json", "vocab.txt", "run.html"):
        assert (trained / name).stat().st_size > 0
    assert len(list((trained / "pictures").glob("*.png"))) == 2
    assert len(list((trained / "checkpoints").iterdir())) == 3
    assert json.loads((trained / "deepspeed.json").read_text())["zero_optimization"]["stage"] == 3


def test_mlflow_has_the_run(trained: Path) -> None:
    client = MlflowClient(f"sqlite:///{trained.parent / 'mlflow.db'}")
    run = client.get_run((trained / "mlflow_run_id").read_text().strip())
    assert run.info.status == "FINISHED"
    assert run.data.params["model.encoder.dim"] == "128"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"experiment.yaml", "pictures"}


def test_the_resolved_experiment_runs_again_to_the_same_curve(trained: Path, command) -> None:  # type: ignore[no-untyped-def]
    """One process instead of two, from the saved experiment.yaml: the samples, masks and losses are the same."""
    command("pretrain", str(trained / "experiment.yaml"), "--set", "name=one")
    np.testing.assert_allclose(losses(trained.parent / "one"), losses(trained), rtol=2e-5)


def test_tensor_parallel_from_shards_has_the_same_curve(trained: Path, command) -> None:  # type: ignore[no-untyped-def]
    command("pretrain", "tiny.yaml", "--nproc", "2", "--set", "name=split", "--set", "parallel.tensor=2")
    np.testing.assert_allclose(losses(trained.parent / "split"), losses(trained), rtol=2e-5)


def test_stop_and_resume_change_nothing(trained: Path, place: Path, command, environment) -> None:  # type: ignore[no-untyped-def]
    """SIGTERM in the middle: a checkpoint, one MLflow run, and the curve of the undisturbed run."""
    arguments = ["pretrain", "tiny.yaml", "--nproc", "2", "--set", "name=stopped"]
    process = subprocess.Popen(
        [sys.executable, "-m", "m3ae_scale.cli.main", *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        output.append(line)
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) == 1:
            process.send_signal(signal.SIGTERM)
    process.wait(timeout=60)
    assert "stopped at step" in "".join(output), "".join(output)
    stopped = place / "runs" / "stopped"
    assert len(list((stopped / "checkpoints").iterdir())) == 1
    run_id = (stopped / "mlflow_run_id").read_text()
    done = command(*arguments, "--resume")
    assert "resumed at step" in done.stdout
    np.testing.assert_allclose(losses(stopped), losses(trained), rtol=2e-5)
    assert (stopped / "mlflow_run_id").read_text() == run_id


def test_killed_outright_resumes_from_the_last_checkpoint(trained: Path, place: Path, command, environment) -> None:  # type: ignore[no-untyped-def]
    arguments = ["pretrain", "tiny.yaml", "--set", "name=killed", "--set", "batch.micro=6"]
    arguments += ["--set", "engine.overrides.train_micro_batch_size_per_gpu=6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "m3ae_scale.cli.main", *arguments],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1].split("/")[0]) == 5:
            process.kill()
    process.wait(timeout=60)
    done = command(*arguments, "--resume")
    assert "resumed at step 4" in done.stdout
    np.testing.assert_allclose(losses(place / "runs" / "killed"), losses(trained), rtol=2e-5)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_other_launchers_start_the_same_command(launcher: str, trained: Path, command) -> None:  # type: ignore[no-untyped-def]
    folder = Path(sys.executable).parent
    if launcher == "torchrun":
        before = (str(folder / "torchrun"), "--standalone", "--nproc-per-node=2", "-m", "m3ae_scale.cli.main")
    else:
        program = [str(folder / "deepspeed"), "--num_gpus=2", "--module", "m3ae_scale.cli.main"]
        before = tuple(program)
    name = f"name={launcher}"
    done = command("pretrain", "tiny.yaml", "--set", name, "--set", "run.validate_every=0", before=before)
    assert f"2 ranks by {launcher}" in done.stdout
    np.testing.assert_allclose(losses(trained.parent / launcher), losses(trained), rtol=2e-5)


def test_features_in_three_lines(trained: Path, place: Path, command) -> None:  # type: ignore[no-untyped-def]
    command("encode", "runs/whole", "--shards", "data/validation/paired", "--output", "features.npz")
    features = np.load(place / "features.npz")
    assert features["cls"].shape == features["mean"].shape == (12, 128) and len(set(features["names"])) == 12

    encoder = m3ae_scale.load_encoder(trained)
    texts = encoder.encode(texts=["a small red circle", "two large blue squares on a grey background"])
    assert texts.cls.shape == (2, 128) and texts.cls.isfinite().all()
    assert not np.allclose(texts.cls[0], texts.cls[1])


def test_progress_lines_are_made_for_people(trained: Path, command) -> None:  # type: ignore[no-untyped-def]
    started = time.monotonic()
    done = command("pretrain", "tiny.yaml", "--set", "name=lines", "--set", "train.length=3 steps")
    assert time.monotonic() - started < 200
    for said in ("model", "topology   1 ranks", "batch      12 =", "attention padded"):
        assert said in done.stdout
    assert "Traceback" not in done.stdout + done.stderr and "WARNING" not in done.stderr


def test_dealing_by_tokens_has_the_same_curve(trained: Path, command) -> None:  # type: ignore[no-untyped-def]
    """A token budget deals the same global batches into other micro-batches; the mean over the batch stays exact."""
    budget = ["--set", "batch.micro_tokens=160", "--set", "engine.overrides.train_micro_batch_size_per_gpu=null"]
    done = command("pretrain", "tiny.yaml", "--nproc", "2", "--set", "name=tokens", *budget)
    assert "160 tokens x data 2 x accumulation" in done.stdout
    np.testing.assert_allclose(losses(trained.parent / "tokens"), losses(trained), rtol=2e-5)
