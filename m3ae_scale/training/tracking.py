"""The run in MLflow: one run per training, written by a thread of its own, so that no tracking server can stall it.

metrics.jsonl always has every metric; MLflow is the copy that is nice to browse. Whatever it cannot take is dropped
after a few tries, with one warning.
"""

import fcntl
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from m3ae_scale.config import Experiment

# Read by mlflow. Nothing is sent to its makers; its own retries (minutes) and their messages give way to those below.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

log = logging.getLogger(__name__)
for _noisy in ("mlflow", "alembic"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)

Status = Literal["FINISHED", "FAILED", "KILLED"]
RUN_ID_FILE = "mlflow_run_id"
_SQLITE = "sqlite:///"
_WAITS = (0.0, 1.0, 4.0)  # seconds before each try of a write
_QUEUE = 10_000  # writes waiting for the server; more are dropped
_BATCH = 100  # parameters or tags in one request, MLflow's limit
_VALUE = 6000  # characters of a parameter, MLflow's limit; 5000 of a tag


class Tracker:
    """The MLflow run of one training; its methods return at once and never raise for the store's sake.

    Used as a context it closes as FINISHED, as FAILED on an exception, as KILLED on KeyboardInterrupt or SystemExit,
    unless `close` was called before.
    """

    def __init__(self, experiment: Experiment, folder: Path, tags: Mapping[str, Any] | None = None):
        """Begin the run, or go on with the one that `folder` names.

        tags: what is worth searching for, nested or flat (provenance, topology); None values are left out.
        """
        self._folder = folder
        self._uri = experiment.tracking.uri or default_uri(folder)
        self._experiment = experiment
        self._tags = {key: str(value)[:5000] for key, value in flatten(tags or {}).items() if value is not None}
        self._client: MlflowClient | None = None
        self._run: str | None = None
        self._have: dict[str, int] = {}  # metric -> last step that an earlier life of the run has written
        self._lost, self._warned = 0, False
        self._closing = threading.Event()
        self._writes: queue.SimpleQueue[Callable[[MlflowClient, str], Any] | None] = queue.SimpleQueue()
        self._status: Status | None = None
        self._thread = threading.Thread(target=self._write_all, name="mlflow", daemon=True)
        self._thread.start()
        self._put(lambda client, run: None)  # so that the run shows before its first metric

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log `values` at `step`; steps that the run already has from before a resume stay as they are.

        MLflow cannot take a point back, and a second one at the same step would show as a zigzag.
        """
        now = int(time.time() * 1000)  # fixed here: a repeated write is then the same point
        points = [Metric(name, float(value), now, step) for name, value in values.items()]

        def write(client: MlflowClient, run: str) -> None:
            new = [point for point in points if step > self._have.get(point.key, -1)]
            if new:
                client.log_batch(run, metrics=new)

        self._put(write)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy the file at `path` into the run's artifacts, under `folder`."""
        self._put(lambda client, run: client.log_artifact(run, str(path), folder))

    def text(self, text: str, name: str) -> None:
        """Keep `text` as the artifact `name`, which may hold a folder."""
        self._put(lambda client, run: client.log_text(run, text, name))

    def close(self, status: Status = "FINISHED", timeout: float = 30.0) -> None:
        """Write what waits, for at most `timeout` seconds, and set the run's last status. Later calls do nothing."""
        if self._status is not None:
            return
        self._status = status
        self._writes.put(lambda client, run: client.set_terminated(run, status))
        self._writes.put(None)
        self._closing.set()
        self._thread.join(timeout)
        lost = self._lost + self._writes.qsize()
        if lost:
            log.info("MLflow at %s lacks %d writes of this run", self._uri, lost)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("FAILED" if issubclass(kind, Exception) else "KILLED")

    def _put(self, write: Callable[[MlflowClient, str], Any]) -> None:
        if self._writes.qsize() < _QUEUE:
            self._writes.put(write)
        else:
            self._lost += 1

    def _write_all(self) -> None:
        while (write := self._writes.get()) is not None:
            self._write(write)

    def _write(self, write: Callable[[MlflowClient, str], Any]) -> None:
        for wait in _WAITS:
            self._closing.wait(wait)
            try:
                write(*self._open())
                return
            except Exception as error:  # whatever a store or its driver raises, training goes on
                reason = " ".join(f"{type(error).__name__}: {error}".split())
            if self._closing.is_set():  # no more waiting: what is left gets one try
                break
        self._lost += 1
        if not self._warned:
            self._warned = True
            log.warning(
                "MLflow at %s takes no writes: training goes on, metrics.jsonl has them all (%s)",
                self._uri,
                reason[:300],
            )

    def _open(self) -> tuple[MlflowClient, str]:
        """Connect, begin or continue the run, and describe it; once all of that has worked it costs nothing."""
        if self._client is not None and self._run is not None:
            return self._client, self._run
        with _alone(self._uri):
            client = MlflowClient(self._uri)
            run = self._continued(client) or self._begun(client)
        self._describe(client, run)
        self._client, self._run = client, run
        return client, run

    def _continued(self, client: MlflowClient) -> str | None:
        file = self._folder / RUN_ID_FILE
        if not file.exists():
            return None
        try:
            found = client.get_run(file.read_text().strip())
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None  # another store, or the run was purged from this one
            raise
        if found.info.lifecycle_stage == "deleted":
            return None
        run = str(found.info.run_id)
        for name in found.data.metrics:
            self._have[name] = max(point.step for point in client.get_metric_history(run, name))
        client.update_run(run, status="RUNNING")
        return run

    def _begun(self, client: MlflowClient) -> str:
        name = self._experiment.tracking.experiment
        known = client.get_experiment_by_name(name)
        place = known.experiment_id if known else client.create_experiment(name, artifact_location(self._uri))
        run = str(client.create_run(place, run_name=self._experiment.name).info.run_id)
        (self._folder / RUN_ID_FILE).write_text(run + "\n")
        return run

    def _describe(self, client: MlflowClient, run: str) -> None:
        """Log tags and parameters. MLflow lets no parameter change: a changed one becomes the tag changed.<key>."""
        wanted = {key: str(value)[:_VALUE] for key, value in flatten(_dump(self._experiment)).items()}
        present = client.get_run(run).data.params
        changed = {key: value for key, value in wanted.items() if present.get(key, value) != value}
        new = [Param(key, value) for key, value in wanted.items() if key not in present]
        tags = self._tags | {f"changed.{key}": value[:5000] for key, value in changed.items()}
        if "git.commit" in tags:
            tags["mlflow.source.git.commit"] = tags["git.commit"]  # the name that MLflow's pages look for
        for start in range(0, len(new), _BATCH):
            client.log_batch(run, params=new[start : start + _BATCH])
        pairs = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(pairs), _BATCH):
            client.log_batch(run, tags=pairs[start : start + _BATCH])


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep other runs out while a SQLite store is opened: two that create its tables at once leave it broken."""
    if not uri.startswith(_SQLITE):
        yield
        return
    database = Path(uri[len(_SQLITE) :])
    database.parent.mkdir(parents=True, exist_ok=True)
    with open(database.with_name(f"{database.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def default_uri(folder: Path) -> str:
    """Return the URI of the SQLite store that the run folders of one parent share."""
    return f"{_SQLITE}{folder.resolve().parent / 'mlflow.db'}"


def artifact_location(uri: str) -> str | None:
    """Return where artifacts go: beside a SQLite file; None: the server decides."""
    return (Path(uri[len(_SQLITE) :]).resolve().parent / "mlartifacts").as_uri() if uri.startswith(_SQLITE) else None


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn {"a": {"b": 1}, "c": [{"d": 2}]} into {"a.b": 1, "c.0.d": 2}; a list without mappings stays one value.

    Keys keep to what MLflow allows: letters, digits, "_", "-", ".", "/", ":" and spaces.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = prefix + re.sub(r"[^\w\-./: ]", "_", str(key))
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, name + ".")
        else:
            flat[name] = value
    return flat


def _dump(experiment: Experiment) -> dict[str, Any]:
    return experiment.model_dump(mode="json", by_alias=True)
