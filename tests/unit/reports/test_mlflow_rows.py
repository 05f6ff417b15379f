"""A run that MLflow knows must come out as the row that a sweep would have written of it."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from m3ae_scale.config import Experiment
from m3ae_scale.errors import InputError
from m3ae_scale.reports.mlflow_rows import mlflow_rows
from m3ae_scale.reports.run_figures import model_figures, run_figures
from m3ae_scale.training.tracking import flatten

EXPERIMENT = Experiment.model_validate(
    {
        "name": "a_run",
        "model": {"size": "tiny", "drop_path": 0.1},
        "data": {"sources": [{"name": "a", "shards": "a.tar"}], "tokenizer": "vocab.txt"},
        "batch": {"global": 8},
        "train": {"length": "40 steps"},
        "engine": {"deepspeed": "zero3_bf16"},
    }
)
FACTS = {
    "host": "gpu07",
    "hardware": {"cpu": "EPYC", "cores": 96, "memory_gib": 1500.0, "gpus": [{"name": "H200", "memory_gib": 139.8}]},
    "versions": {"torch": "2.13", "megatron-core": "0.16.1"},
    "git": {"commit": "0123", "dirty": False},
    "topology": {"world": 4},
    "model": {"parameters": 1, "vocabulary": 2000},
}  # fmt: skip
ROWS = [
    {"step": 10 * n, "loss": 4.0 / n, "seconds": 2.0 * n, "samples_per_second": 40.0 + n, "step_seconds": 0.2}
    for n in range(1, 5)
]
ROWS[-1]["validation_loss"] = 1.25


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    client = MlflowClient(uri)
    place = client.create_experiment("made", artifact_location="file:///nowhere")
    for name, status in (("a_run", "FINISHED"), ("killed", "KILLED"), ("of another kind", "FINISHED")):
        run = client.create_run(place, run_name=name, tags={k: str(v) for k, v in flatten(FACTS).items()}).info.run_id
        for row in ROWS:
            for key, value in row.items():
                if key != "step":
                    client.log_metric(run, key, value, step=row["step"])
        settings = flatten(EXPERIMENT.model_dump(mode="json", by_alias=True)) if name != "of another kind" else {}
        for key, value in settings.items():
            if key.startswith(("model.", "batch.")):
                client.log_param(run, key, str(value))
        client.set_terminated(run, status)
    return uri


def test_a_finished_run_is_a_row(store: str) -> None:
    (row,) = mlflow_rows(store)
    expected = run_figures(8, ROWS) | model_figures(EXPERIMENT.model, 2000)
    assert {key: row[key] for key in expected} == expected
    assert row["validation_loss"] == 1.25 and row["samples"] == 320 and row["samples_per_second"] == 43
    assert row["cell"]["sweep"] == "made" and row["cell"]["size"] == "tiny" and row["devices"] == 4
    for key in ("host", "hardware", "versions"):
        assert str(row["provenance"][key]) == str(FACTS[key]), key


def test_what_cannot_be_read_is_one_line(store: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no 'other' in sqlite.*expected one of .*made"):
        mlflow_rows(store, "other")
    with pytest.raises(InputError, match=r"found no .*none.db"):
        mlflow_rows(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
