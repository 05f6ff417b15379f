"""What happens to a real run when something breaks: nothing harmful is applied, nothing is silent, little is lost."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from processes import HERE

from m3ae_scale.data.synthesize import Synthesis, synthesize
from m3ae_scale.errors import EXIT_HUNG, EXIT_MISTAKE, EXIT_STOPPED
from m3ae_scale.training.metrics_file import read_metrics

ROOT = Path(__file__).parents[2]
STEPS = 16
BACKGROUND = "run.save_in_background=true"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("faults"))


def furnish(folder: Path) -> Path:
    """Put data/ and faults.yaml into `folder`: 16 steps of 8 samples, ZeRO-2, a checkpoint every 4."""
    synthesize(folder / "data", Synthesis(samples=64, image_only=0, text_only=0, validation=8, seed=5), processes=1)
    experiment = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    experiment["name"] = "faults"
    experiment["data"]["workers"] = 0
    experiment["data"]["tokenizer"] = "data/vocab.txt"
    experiment["data"]["sources"] = [{"name": "pairs", "shards": "data/train/paired"}]
    experiment["data"]["validation"] = [{"name": "held_out", "shards": "data/validation/paired"}]
    experiment["batch"] = {"global": 8}
    experiment["engine"] = {"deepspeed": "zero2_fp32", "overrides": {"train_micro_batch_size_per_gpu": 2}}
    experiment["train"] = {"length": f"{STEPS} steps", "warmup": "2 steps"}
    experiment["guard"] = {"window": 6}
    experiment["run"] = {"log_every": 1, "validate_every": 8, "pictures_every": 0, "checkpoint_every": 4}
    (folder / "faults.yaml").write_text(yaml.safe_dump(experiment, sort_keys=False))
    return folder


def pretrain(place: Path, name: str, faults: list[dict[str, Any]], *changes: str, code: int = 0) -> str:
    """Train on two ranks to which `faults` happen; returns all that was printed."""
    arguments = ["pretrain", "faults.yaml", f"--set=name={name}", *(f"--set={change}" for change in changes)]
    argv = [sys.executable, str(HERE / "faulty_pretrain.py"), json.dumps(faults), *arguments, "--resume"]
    launch = f"import sys; from m3ae_scale.parallel.launch import launch_local; sys.exit(launch_local(2, {argv!r}))"
    done = subprocess.run([sys.executable, "-c", launch], cwd=place, capture_output=True, text=True, timeout=500)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-30000:]
    return done.stdout + done.stderr


def rows(place: Path, name: str) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in read_metrics(place / "runs" / name / "metrics.jsonl")}


def events(place: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "runs" / name / "guard" / "events.jsonl").read_text().splitlines()]


def samples(place: Path, name: str, step: int) -> list[list[dict[str, Any]]]:
    """By rank, the samples written down of a step that was not applied."""
    files = sorted((place / "runs" / name / "guard").glob(f"step_{step - 1:08d}.rank*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def test_steps_that_would_harm_are_not_applied_and_a_slow_rank_is_named(place: Path) -> None:
    said = pretrain(
        place,
        "skip",
        [
            {"fault": "nan_data", "rank": 1, "step": 4},
            {"fault": "nan_gradient", "rank": 0, "step": 6},
            {"fault": "spike", "rank": 1, "step": 10, "factor": 300.0},
            {"fault": "clock", "rank": 0, "step": 11, "seconds": -86400.0},
            {"fault": "slow", "rank": 1, "step": 13, "seconds": 0.4, "always": True},
        ],
    )
    found = events(place, "skip")
    assert [(event["step"] + 1, event["action"]) for event in found] == [(4, "skip"), (6, "skip"), (10, "skip")]
    reasons = [event["reason"] for event in found]
    assert reasons[0] == "the loss of 2 samples is not finite (rank 1)"
    assert reasons[1] == "the gradient is not finite"
    assert "spreads above" in reasons[2]
    for event in found:
        assert f"guard: step {event['step'] + 1} not applied, passed over: {event['reason']}" in said
    by_rank = samples(place, "skip", 4)
    assert [len(listed) for listed in by_rank] == [4, 4]
    assert [row["objective"] for row in by_rank[1]][:2] == ["nan", "nan"]
    assert all(row["sample"].startswith("pairs/") for listed in by_rank for row in listed)
    assert all(math.isfinite(row["objective"]) for row in by_rank[0])
    trained = rows(place, "skip")
    assert sorted(trained)[-1] == STEPS and trained[10]["guard_refused_steps"] == 3
    assert all(math.isfinite(row["loss"]) for row in trained.values() if "loss" in row)
    assert "loss" not in trained[4] and trained[11]["loss"] < 10
    assert "slow: rank 1 on " in said and "a step for its data" in said
    run = (place / "runs" / "skip" / "mlflow_run_id").read_text().strip()
    client = MlflowClient(f"sqlite:///{place / 'runs' / 'mlflow.db'}")
    refused = client.get_metric_history(run, "guard_refused_steps")
    assert [(point.step, point.value) for point in refused] == [(4, 1), (6, 2), (10, 3)]
    assert {file.path for file in client.list_artifacts(run, "guard")} >= {"guard/events.jsonl"}


def test_weights_that_went_bad_are_left_behind_with_the_samples_that_spoiled_them(place: Path) -> None:
    said = pretrain(
        place, "back", [{"fault": "nan_weights", "rank": 1, "step": 7}], "guard.policy=rollback", BACKGROUND
    )
    assert [(event["step"] + 1, event["action"]) for event in events(place, "back")] == [(7, "rollback")]
    assert "guard: step 7 not applied, back to the last checkpoint" in said
    # The same samples passed over from the start give the same curve: the rollback left nothing behind.
    pretrain(place, "clean", [{"fault": "nan_data", "rank": 1, "step": 7}])
    ours, theirs = rows(place, "back"), rows(place, "clean")
    for step in set(range(1, STEPS + 1)) - {7}:
        assert ours[step]["loss"] == pytest.approx(theirs[step]["loss"], rel=1e-5), step


def test_a_run_that_gets_no_further_stops_and_says_why(place: Path) -> None:
    faults = [{"fault": "nan_data", "rank": 0, "step": 3, "always": True}]
    said = pretrain(place, "diverged", faults, "guard.limit=2", code=EXIT_MISTAKE)
    last = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and "step 5 cannot be applied, number 3 within 6 steps (guard.limit 2)" in last[0]
    assert "Traceback" not in said


def test_a_rank_that_hangs_ends_the_run_with_the_stacks_of_all(place: Path) -> None:
    said = pretrain(place, "hung", [{"fault": "hang", "rank": 1, "step": 6}], "guard.hang_after=15", code=EXIT_HUNG)
    assert "rank 1 on " in said and "is behind, at step 6, waiting for data" in said
    stacks = [(place / "runs" / "hung" / "hang" / f"rank_0000{rank}.txt").read_text() for rank in (0, 1)]
    assert "in __next__" in stacks[1] and "in train" in stacks[0]
    pretrain(place, "hung", [])  # goes on from the checkpoint of step 4
    assert sorted(rows(place, "hung"))[-1] == STEPS


@pytest.mark.parametrize(("moment", "step"), [("signal_in_validation", 8), ("signal_in_save", 4)])
def test_a_signal_at_a_bad_moment_stops_after_a_checkpoint(place: Path, moment: str, step: int) -> None:
    said = pretrain(place, moment, [{"fault": moment, "rank": 1, "step": step}], code=EXIT_STOPPED)
    assert "checkpoint written; go on with --resume" in said
    pretrain(place, moment, [])
    assert sorted(rows(place, moment))[-1] == STEPS
