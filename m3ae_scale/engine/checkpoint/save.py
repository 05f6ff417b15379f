"""Saving: in rounds, every rank sends the fragments it holds to the writers, and each writer streams whole tensors out.

No rank ever holds more than its share of a round (16 MiB, or one tensor that is larger) beside the training state.
A rank whose disk fails goes on taking part, so that nobody hangs; the checkpoint is then dropped on all ranks.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from m3ae_scale.engine.build import Built
from m3ae_scale.engine.checkpoint.exchange import whole_tensors
from m3ae_scale.engine.checkpoint.files import Entry, FileRecord, TensorFile
from m3ae_scale.engine.checkpoint.folder import SaveFailed, begin, discard, next_serial, publish
from m3ae_scale.engine.checkpoint.format import Manifest, write_manifest
from m3ae_scale.engine.checkpoint.plan import Piece, Rounds, share_out
from m3ae_scale.engine.checkpoint.routes import Routes
from m3ae_scale.engine.checkpoint.state import Held, adam_steps, held_parameters
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.version import __version__

T = TypeVar("T")
Files = dict[str, FileRecord]

_VISIBLE_WITHIN = 30.0  # seconds that a shared file system may take to show the first rank what others wrote


@dataclass(frozen=True)
class _Job:
    """A checkpoint that is being written."""

    run_folder: Path
    aside: Path  # where it is written
    groups: Groups
    shares: Mapping[int, Rounds]
    routes: Routes
    manifest: Manifest  # complete but for serial and files


def save_checkpoint(run_folder: Path, built: Built, groups: Groups, progress: dict[str, Any]) -> Path:
    """Write the training state as RUN_FOLDER/checkpoints/step_*, between two optimizer steps. Collective.

    progress: "step" and whatever else the loop wants back, JSON; that of the first rank is kept.
    Returns the folder of the checkpoint. Raises SaveFailed, on every rank, where it could not be written: the
    checkpoints before it are untouched. All ranks must see one file system.
    """
    held = held_parameters(built)
    job = _begin(Path(run_folder), built, groups, progress, held)
    return _publish(job, _attempt(lambda: _write_share(job, _tensors(job, built, held))))


class BackgroundSave:
    """A checkpoint written while training goes on: the ranks copy their shares to host memory, and a thread writes.

    A share is 12 bytes a parameter over the number of ranks. The thread takes part in nothing collective; what it
    wrote is published by `settle`, which the loop calls between steps.
    """

    def __init__(self, run_folder: Path, built: Built, groups: Groups, progress: dict[str, Any]):
        """See save_checkpoint. Collective; returns when the state has been copied."""
        held = held_parameters(built)
        self._job = _begin(Path(run_folder), built, groups, progress, held)
        self._outcome: list[Any] = [None, "the writing thread ended early"]
        copied = list(_tensors(self._job, built, held))
        self._thread = Thread(target=self._write, args=(copied,), name="checkpoint")
        self._thread.start()

    def settle(self, wait: bool = False) -> Path | None:
        """Publish the checkpoint if every rank has written its share, and return its folder; else None. Collective.

        wait: until every rank has. Raises SaveFailed as save_checkpoint does.
        """
        if wait:
            self._thread.join()
        done = torch.tensor(not self._thread.is_alive(), dtype=torch.int32, device=self._job.groups.device)
        dist.all_reduce(done, op=dist.ReduceOp.MIN)
        return _publish(self._job, self._outcome) if done else None

    def _write(self, copied: list[tuple[Piece, Tensor]]) -> None:
        self._outcome = _attempt(lambda: _write_share(self._job, copied))


def _begin(run_folder: Path, built: Built, groups: Groups, progress: dict[str, Any], held: list[Held]) -> _Job:
    routes = Routes(held, groups)
    shares = share_out({h.name: h.shape for h in held}, groups.topology.world, routes.holders())
    places: dict[str, dict[str, str]] = {h.name: {} for h in held}
    for piece in (piece for rounds in shares.values() for pieces in rounds for piece in pieces):
        places[piece.name][piece.kind] = piece.file
    manifest = Manifest(
        step=progress["step"],
        serial=0,
        saved=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        adam_steps=adam_steps(built),
        written_by=_written_by(built, groups),
        progress=progress,
        shapes={h.name: h.shape for h in held},
        places=places,
        files={},
    )
    aside = _by_first(groups, lambda: begin(run_folder, progress["step"]))
    return _Job(run_folder, aside, groups, shares, routes, manifest)


def _tensors(job: _Job, built: Built, held: list[Held]) -> Iterator[tuple[Piece, Tensor]]:
    return whole_tensors(built, held, job.shares, job.routes, job.groups)


def _write_share(job: _Job, tensors: Iterable[tuple[Piece, Tensor]]) -> Files:
    """Write this rank's tensors; all are taken, even after an error, since the others wait in the exchanges."""
    writer = _ShareWriter(job.aside, [piece for pieces in job.shares.get(job.groups.rank, []) for piece in pieces])
    error: OSError | None = None
    for piece, whole in tensors:
        try:
            if error is None:
                writer.write(piece, whole.numpy())
        except OSError as problem:
            error = problem
            writer.abandon()
        del whole  # before the next one is put together: one in memory at a time
    if error is not None:
        raise error
    return writer.finish()


def _publish(job: _Job, outcome: list[Any]) -> Path:
    """Put the outcomes of all ranks together: a manifest and a rename, or everyone's SaveFailed. Collective."""
    outcomes: list[Any] = [None] * job.groups.topology.world
    dist.all_gather_object(outcomes, outcome)
    try:
        for rank, (_, problem) in enumerate(outcomes):
            if problem is not None:
                raise SaveFailed(f"rank {rank}: {problem}")
        files = {name: record for written, _ in outcomes for name, record in written.items()}
        return _by_first(job.groups, lambda: _complete(job, files))
    except SaveFailed:
        if job.groups.first:
            discard(job.aside)
        raise


def _complete(job: _Job, files: Files) -> Path:
    """See that every file is there, write the manifest, and give the folder its name."""
    for name, record in files.items():
        _wait_for(job.aside / name, record.bytes)
    write_manifest(replace(job.manifest, serial=next_serial(job.run_folder), files=files), job.aside)
    return publish(job.aside)


class _ShareWriter:
    """Writes the pieces of one rank, file after file."""

    def __init__(self, folder: Path, pieces: list[Piece]):
        self._folder = folder
        self._entries: dict[str, list[Entry]] = {}
        for piece in pieces:
            self._entries.setdefault(piece.file, []).append((piece.name, piece.shape))
        self._open: tuple[str, TensorFile] | None = None
        self._records: Files = {}

    def write(self, piece: Piece, whole: Any) -> None:
        if self._open is None or self._open[0] != piece.file:
            self._close()
            self._open = piece.file, TensorFile(self._folder / piece.file, self._entries[piece.file])
        self._open[1].write(whole)

    def finish(self) -> Files:
        self._close()
        return self._records

    def abandon(self) -> None:
        if self._open is not None:
            self._open[1].abandon()

    def _close(self) -> None:
        if self._open is not None:
            name, file = self._open
            self._records[name] = file.finish()


def _written_by(built: Built, groups: Groups) -> dict[str, Any]:
    engine = built.engine
    offload = engine.zero_use_cpu_optimizer() if engine.zero_optimization_stage() else False
    return {
        "ranks": groups.topology.world,
        "tensor": groups.topology.tensor,
        "data": groups.topology.data,
        "zero_stage": engine.zero_optimization_stage(),
        "precision": "bf16" if engine.bfloat16_enabled() else "fp32",
        "offload": bool(offload),
        "versions": {"m3ae_scale": __version__}
        | {package: metadata.version(package) for package in ("torch", "deepspeed", "safetensors")},
    }


def _wait_for(path: Path, size: int) -> None:
    """Wait until a file written by another rank is visible here; a network file system may take a while."""
    deadline = time.monotonic() + _VISIBLE_WITHIN
    while not (path.exists() and path.stat().st_size == size):
        if time.monotonic() > deadline:
            raise OSError(
                f"{path} was written by another rank and is not visible here after {_VISIBLE_WITHIN:g} s; "
                f"run.folder must be on a file system that all nodes share"
            )
        time.sleep(0.1)


def _by_first(groups: Groups, work: Callable[[], T]) -> T:
    """Do `work` on the first rank and give everyone its result; its OSError becomes everyone's SaveFailed."""
    told: list[Any] = [None, None]
    if groups.first:
        told = _attempt(work)
    dist.broadcast_object_list(told, src=0, device=groups.device)
    if told[1] is not None:
        raise SaveFailed(told[1])
    return told[0]


def _attempt(work: Callable[[], T]) -> list[Any]:
    try:
        return [work(), None]
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return [None, f"{where}{error.strerror or error}"]
