"""The run in a real MLflow store, read back through MLflow's own client."""

import logging
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from mlflow import MlflowClient

from m3ae_scale.config import Experiment
from m3ae_scale.parallel.spawn import free_port
from m3ae_scale.training import tracking
from m3ae_scale.training.tracking import Tracker, default_uri, flatten

EXPERIMENT = {
    "name": "try",
    "model": {"size": "tiny"},
    "data": {"sources": [{"name": "a", "shards": "a/*.tar"}], "tokenizer": "vocab.txt"},
    "batch": {"global": 8, "micro": 2},
    "train": {"length": "20 steps"},
    "engine": {"deepspeed": "zero3"},
}
TAGS = {"git": {"commit": "abc", "dirty": False}, "topology": {"ranks": 4}, "slurm_job": None}


def experiment(uri=None, **changes):
    return Experiment.model_validate(EXPERIMENT | {"tracking": {"uri": uri}} | changes)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A store with its tables made, which takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def folder(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "try").mkdir()
    return tmp_path / "try"


def runs(uri):
    client = MlflowClient(uri)
    return client, client.search_runs([e.experiment_id for e in client.search_experiments()])


def points(client, run, name):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


def test_a_run_holds_parameters_tags_metrics_and_files(folder, caplog):
    picture = folder / "sheet.png"
    picture.write_bytes(b"png")
    with Tracker(experiment(), folder, TAGS) as tracker:
        for step in (10, 20):
            tracker.metrics(step, {"loss": 1 / step, "lr": 0.1})
        tracker.artifact(picture, "pictures")
        tracker.text("resolved", "config/experiment.yaml")
    client, (run,) = runs(default_uri(folder))
    assert (run.info.status, run.info.run_name) == ("FINISHED", "try")
    assert run.data.params["model.encoder.dim"] == "128"
    assert run.data.params["data.sources.0.shards"] == "a/*.tar"
    assert run.data.tags["topology.ranks"] == "4" and "slurm_job" not in run.data.tags
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert points(client, run, "loss") == [(10, 0.1), (20, 0.05)]
    assert (folder.parent / "mlartifacts" / run.info.run_id / "artifacts" / "pictures" / "sheet.png").exists()
    assert client.list_artifacts(run.info.run_id, "config")[0].path == "config/experiment.yaml"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_resume_goes_on_with_the_run_and_repeats_no_point(folder):
    with pytest.raises(KeyboardInterrupt), Tracker(experiment(), folder, TAGS) as tracker:
        for step in (10, 20, 30):
            tracker.metrics(step, {"loss": float(step)})
        tracker.metrics(20, {"validation_loss": 5.0})
        raise KeyboardInterrupt
    client, (run,) = runs(default_uri(folder))
    assert run.info.status == "KILLED"

    longer = experiment(train={"length": "40 steps"})
    tracker = Tracker(longer, folder, TAGS)
    for step in (20, 30, 40):  # resumed from a checkpoint at step 15
        tracker.metrics(step, {"loss": float(step), "validation_loss": 6.0, "late": 1.0})
    tracker.close()
    client, (run,) = runs(default_uri(folder))
    assert run.info.status == "FINISHED"
    assert points(client, run, "loss") == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]
    assert points(client, run, "validation_loss") == [(20, 5.0), (30, 6.0), (40, 6.0)]
    assert points(client, run, "late") == [(20, 1.0), (30, 1.0), (40, 1.0)]
    assert run.data.params["train.length"] == "20 steps"  # MLflow keeps the first
    assert run.data.tags["changed.train.length"] == "40 steps"


@pytest.mark.parametrize("content", ["", "not an id", "0" * 32])
def test_a_run_id_of_another_store_gives_a_new_run(folder, content):
    (folder / "mlflow_run_id").write_text(content)
    Tracker(experiment(), folder).close("FAILED")
    _, (run,) = runs(default_uri(folder))
    assert run.info.status == "FAILED" and (folder / "mlflow_run_id").read_text().strip() == run.info.run_id


def test_a_dead_server_costs_no_time_and_one_warning(folder, caplog, monkeypatch):
    monkeypatch.setattr(tracking, "_WAITS", (0.0, 0.01))
    monkeypatch.setattr(tracking, "_QUEUE", 50)
    dead = socket.socket()
    dead.bind(("127.0.0.1", 0))  # bound and not listening: refused
    tracker = Tracker(experiment(f"http://127.0.0.1:{dead.getsockname()[1]}"), folder, TAGS)
    for step in range(200):
        tracker.metrics(step, {"loss": 1.0})
        time.sleep(0.001)
    tracker.close(timeout=60)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1 and "metrics.jsonl has them all" in warnings[0]
    assert not (folder / "mlflow_run_id").exists()


def test_a_server_that_hangs_does_not_hold_the_end_of_the_run(folder, caplog):
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen()  # takes the connection and never answers
    tracker = Tracker(experiment(f"http://127.0.0.1:{silent.getsockname()[1]}"), folder, TAGS)
    tracker.metrics(1, {"loss": 1.0})
    tracker.close(timeout=0.1)
    assert tracker._thread.is_alive()  # still waiting for the answer; nobody waits for it
    silent.close()


def test_a_server_that_comes_up_late_gets_the_run(folder, monkeypatch):
    monkeypatch.setattr(tracking, "_WAITS", (0.0,) + (0.5,) * 200)
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    tracker = Tracker(experiment(uri), folder, TAGS)
    tracker.metrics(1, {"loss": 1.0})
    store = ["--backend-store-uri", default_uri(folder), "--artifacts-destination", str(folder.parent / "served")]
    with open(folder / "server.log", "wb") as log:
        command = [sys.executable, "-m", "mlflow", "server", *store, "--port", str(port), "--workers", "1"]
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "mlflow_run_id").exists():
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.2)
        tracker.text("resolved", "experiment.yaml")
        tracker.close(timeout=60)
        client, (run,) = runs(uri)
        assert run.info.status == "FINISHED" and points(client, run, "loss") == [(1, 1.0)]
        with urllib.request.urlopen(
            f"{uri}/get-artifact?path=experiment.yaml&run_uuid={run.info.run_id}", timeout=60
        ) as answer:
            assert answer.read() == b"resolved"
    finally:
        server.terminate()
        server.wait(30)


def test_flatten_keeps_every_leaf():
    nested = {"a": {"b": 1, "c d": [1, 2]}, "e": [{"f": 2}, {"g": None}], "odd,key": 3}
    assert flatten(nested) == {"a.b": 1, "a.c d": [1, 2], "e.0.f": 2, "e.1.g": None, "odd_key": 3}
