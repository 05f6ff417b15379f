"""Finished runs of an MLflow store as rows of results, as a sweep would have written them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from m3ae_scale.config import ModelConfig
from m3ae_scale.errors import InputError
from m3ae_scale.reports.run_figures import model_figures, run_figures

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

_METRICS = (
    "loss", "seconds", "samples_per_second", "tokens_per_second", "step_seconds", "validation_loss",
    "validation_image_loss", "validation_text_loss", "validation_text_accuracy",
)  # fmt: skip


def mlflow_rows(uri: str, experiment: str | None = None) -> list[dict[str, Any]]:
    """Read every finished run of the store at `uri`, or of one of its experiments.

    Raises InputError where the store cannot be read, or has no such experiment.
    """
    store = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not store.is_file():  # MLflow would make one
        raise InputError(f"--mlflow {uri}: found no {store}; give the store that the runs are in")
    client = MlflowClient(uri)
    try:
        known = {found.experiment_id: found.name for found in client.search_experiments()}
        wanted = [number for number, name in known.items() if experiment in (None, name)]
        if not wanted:
            names = ", ".join(known.values())
            raise InputError(f"--experiment: found no {experiment!r} in {uri}; expected one of {names}")
        runs = _all_runs(client, wanted)
        rows = [_row(client, run, known[run.info.experiment_id], uri) for run in runs]
    except MlflowException as error:
        raise InputError(f"--mlflow {uri}: cannot be read: {error.message.splitlines()[0]}") from None
    return [row for row in rows if row is not None]


def _all_runs(client: MlflowClient, experiments: list[str]) -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiments, "attributes.status = 'FINISHED'", page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def _row(client: MlflowClient, run: Run, sweep: str, uri: str) -> dict[str, Any] | None:
    tags, settings = run.data.tags, _nested(run.data.params)
    try:
        model, batch = ModelConfig.model_validate(settings["model"]), int(settings["batch"]["global"])
    except (KeyError, TypeError, ValueError):  # a run of something else
        return None
    figures = run_figures(batch, _metrics(client, run))
    if "samples" not in figures:
        return None
    devices = int(tags.get("topology.world", "1"))
    vocabulary = tags.get("model.vocabulary")
    cell = {
        "sweep": sweep,
        "size": model.size or f"{model.encoder.dim}x{model.encoder.depth}",
        "layout": "plain",
        "samples": figures["samples"],
        "devices": devices,
        "global_batch": batch,
        "run": run.info.run_id,
    }
    return {
        "bench": "scaling",
        "cell": cell,
        "status": "ok",
        "devices": devices,
        "device": "cuda" if any(key.startswith("hardware.gpus") for key in tags) else "cpu",
        **(model_figures(model, int(vocabulary)) if vocabulary else {}),
        **figures,
        "provenance": _provenance(tags, uri),
    }


def _metrics(client: MlflowClient, run: Run) -> list[dict[str, float]]:
    """Return the run's metrics as rows, one a step."""
    steps: dict[int, dict[str, float]] = {}
    for name in _METRICS:
        for point in client.get_metric_history(run.info.run_id, name) if name in run.data.metrics else ():
            steps.setdefault(point.step, {"step": point.step})[name] = point.value
    return [steps[step] for step in sorted(steps)]


def _nested(flat: Mapping[str, str]) -> dict[str, Any]:
    """Turn {"a.b": "1"} into {"a": {"b": 1}}: what tracking.flatten has done, undone."""
    nested: dict[str, Any] = {}
    for key, text in flat.items():
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = None if text == "None" else yaml.safe_load(text)
    return nested


def _provenance(tags: Mapping[str, str], uri: str) -> dict[str, Any]:
    """Put the provenance together again that the run was tagged with."""
    found = _nested({key: value for key, value in tags.items() if key.startswith(("git.", "versions.", "hardware."))})
    gpus = (found.get("hardware") or {}).get("gpus")
    if isinstance(gpus, dict):
        found["hardware"]["gpus"] = list(gpus.values())
    versions = {key.removeprefix("versions."): tags[key] for key in tags if key.startswith("versions.")}
    plain = {key: tags[key] for key in ("date", "host", "command") if key in tags}
    return {**plain, **found, "versions": versions, "store": uri}
