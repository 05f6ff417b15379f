"""Saving: in rounds, every rank sends the fragments it holds to the writers, and each writer streams whole tensors out.

No rank ever holds more than its share of a round (64 MiB, or one tensor that is larger) beside the training state.
A rank whose disk fails goes on taking part, so that nobody hangs; the checkpoint is then dropped on all ranks.
"""

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from m3ae_scale.engine.build import Built
from m3ae_scale.engine.checkpoint.exchange import whole_tensors
from m3ae_scale.engine.checkpoint.files import Entry, FileRecord, TensorFile
from m3ae_scale.engine.checkpoint.folder import SaveFailed, begin, discard, next_serial, publish
from m3ae_scale.engine.checkpoint.format import Manifest, write_manifest
from m3ae_scale.engine.checkpoint.plan import Piece, Rounds, share_out
from m3ae_scale.engine.checkpoint.state import Held, adam_steps, held_parameters
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.version import __version__

T = TypeVar("T")

_VISIBLE_WITHIN = 30.0  # seconds that a shared file system may take to show the first rank what others wrote


def save_checkpoint(run_folder: Path, built: Built, groups: Groups, progress: dict[str, Any]) -> Path:
    """Write the training state as RUN_FOLDER/checkpoints/step_*, between two optimizer steps. Collective.

    progress: "step" and whatever else the loop wants back, JSON; that of the first rank is kept.
    Returns the folder of the checkpoint. Raises SaveFailed, on every rank, where it could not be written: the
    checkpoints before it are untouched. All ranks must see one file system.
    """
    run_folder = Path(run_folder)
    held = held_parameters(built)
    shares = share_out({h.name: h.shape for h in held}, groups.topology.world)
    aside = _by_first(groups, lambda: begin(run_folder, progress["step"]))
    try:
        files = _by_all(groups, lambda: _write_share(aside, built, held, shares, groups))
        _by_first(groups, lambda: _describe(aside, run_folder, built, groups, progress, held, shares, files))
        return _by_first(groups, lambda: publish(aside))
    except SaveFailed:
        if groups.first:
            discard(aside)
        raise


def _write_share(
    aside: Path, built: Built, held: list[Held], shares: Mapping[int, Rounds], groups: Groups
) -> dict[str, FileRecord]:
    """Take part in every round, and write this rank's tensors."""
    writer = _ShareWriter(aside, [piece for pieces in shares.get(groups.rank, []) for piece in pieces])
    error: OSError | None = None
    for tensors in whole_tensors(built, held, shares, groups):
        try:
            for piece, whole in tensors if error is None else []:
                writer.write(piece, whole.numpy())
        except OSError as problem:
            error = problem
            writer.abandon()
    if error is not None:
        raise error
    return writer.finish()


class _ShareWriter:
    """Writes the pieces of one rank, file after file."""

    def __init__(self, folder: Path, pieces: list[Piece]):
        self._folder = folder
        self._entries: dict[str, list[Entry]] = {}
        for piece in pieces:
            self._entries.setdefault(piece.file, []).append((piece.name, piece.shape))
        self._open: tuple[str, TensorFile] | None = None
        self._records: dict[str, FileRecord] = {}

    def write(self, piece: Piece, whole: Any) -> None:
        if self._open is None or self._open[0] != piece.file:
            self._close()
            self._open = piece.file, TensorFile(self._folder / piece.file, self._entries[piece.file])
        self._open[1].write(whole)

    def finish(self) -> dict[str, FileRecord]:
        self._close()
        return self._records

    def abandon(self) -> None:
        if self._open is not None:
            self._open[1].abandon()

    def _close(self) -> None:
        if self._open is not None:
            name, file = self._open
            self._records[name] = file.finish()


def _describe(
    aside: Path,
    run_folder: Path,
    built: Built,
    groups: Groups,
    progress: dict[str, Any],
    held: list[Held],
    shares: Mapping[int, Rounds],
    files: dict[str, FileRecord],
) -> None:
    """See that every file is there, and write the manifest."""
    for name, record in files.items():
        _wait_for(aside / name, record.bytes)
    places: dict[str, dict[str, str]] = {h.name: {} for h in held}
    for piece in (piece for rounds in shares.values() for pieces in rounds for piece in pieces):
        places[piece.name][piece.kind] = piece.file
    manifest = Manifest(
        step=progress["step"],
        serial=next_serial(run_folder),
        saved=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        adam_steps=adam_steps(built),
        written_by=_written_by(built, groups),
        progress=progress,
        shapes={h.name: h.shape for h in held},
        places=places,
        files=files,
    )
    write_manifest(manifest, aside)


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


def _by_all(groups: Groups, work: Callable[[], dict[str, FileRecord]]) -> dict[str, FileRecord]:
    """Do `work` on every rank and put the results together; the first OSError becomes everyone's SaveFailed."""
    outcomes: list[Any] = [None] * groups.topology.world
    dist.all_gather_object(outcomes, _attempt(work))
    for rank, (_, problem) in enumerate(outcomes):
        if problem is not None:
            raise SaveFailed(f"rank {rank}: {problem}")
    return {name: record for files, _ in outcomes for name, record in files.items()}


def _attempt(work: Callable[[], T]) -> list[Any]:
    try:
        return [work(), None]
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return [None, f"{where}{error.strerror or error}"]
