"""The checkpoints of a run folder: begun aside, published by one rename, found by what verifies, pruned. No torch.

    RUN/checkpoints/step_00001000                the tensors of step 1000
    RUN/checkpoints/step_00001200.tmp-3f2a       being written, or left by a run that died: swept at the next save

No file points at the newest checkpoint: it is the one with the highest serial whose hashes match.
"""

import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from m3ae_scale.engine.checkpoint.format import MANIFEST, Damaged, Manifest, read_manifest, require_good
from m3ae_scale.errors import InputError

_NAME = re.compile(r"step_(\d+)(\.\d+)?")
_ASIDE = ".tmp-"


class SaveFailed(Exception):
    """A checkpoint that could not be written (a full disk); those before it are untouched and the run can go on."""


def checkpoints_folder(run_folder: Path) -> Path:
    """Return where the checkpoints of a run lie."""
    return run_folder / "checkpoints"


def list_checkpoints(run_folder: Path) -> list[tuple[Path, Manifest | None]]:
    """List the published checkpoints, newest first; those without a readable manifest (None) come first of all."""
    folder = checkpoints_folder(run_folder)
    paths = [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    listed = [(path, _manifest_or_none(path)) for path in sorted(paths)]
    return sorted(listed, key=lambda item: (item[1] is None, item[1].serial if item[1] else 0), reverse=True)


def latest_checkpoint(run_folder: Path) -> Path | None:
    """Return the newest checkpoint of the run whose every hash matches, None where there is none.

    Says so in a line for each damaged one that it passes over. Raises InputError for one of a newer format.
    """
    for path, _ in list_checkpoints(Path(run_folder)):
        try:
            require_good(path)
        except Damaged as problem:
            say_passed_over(path, problem)
            continue
        return path
    return None


def say_passed_over(path: Path, problem: Damaged) -> None:
    """Warn that a checkpoint is not used, and why."""
    print(f"warning: passing over checkpoint {path.name}: {problem.what}", file=sys.stderr, flush=True)


def find_checkpoint(path: Path) -> Path:
    """Return `path` where it is a checkpoint, or the newest good one of the run folder `path`.

    Raises InputError where there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    latest = latest_checkpoint(path)
    if latest is None:
        raise InputError(f"{path}: no checkpoint there; give a run folder that has one, or the folder of a checkpoint")
    return latest


def begin(run_folder: Path, step: int) -> Path:
    """Sweep what dead runs left half-written, and make the folder in which the checkpoint of `step` is written."""
    folder = checkpoints_folder(run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(f"*{_ASIDE}*"):
        shutil.rmtree(stale, ignore_errors=True)
    aside = folder / f"step_{step:08d}{_ASIDE}{uuid4().hex[:8]}"
    aside.mkdir()
    return aside


def next_serial(run_folder: Path) -> int:
    """Return a serial above those of all checkpoints of the run."""
    return 1 + max((manifest.serial for _, manifest in list_checkpoints(run_folder) if manifest), default=0)


def publish(aside: Path) -> Path:
    """Give the finished folder `aside` its name: after this, and not before, the checkpoint exists."""
    _sync(aside)
    name, again = aside.name.partition(_ASIDE)[0], 1
    path = aside.with_name(name)
    while path.exists():  # this step was saved before: by a run that was rolled back, or that stopped right after it
        again += 1
        path = aside.with_name(f"{name}.{again}")
    aside.rename(path)
    _sync(path.parent)
    return path


def discard(path: Path) -> None:
    """Remove a checkpoint folder; renamed first, so that a crash leaves nothing that looks like a checkpoint."""
    aside = path
    if _ASIDE not in path.name:
        aside = path.with_name(f"{path.name}{_ASIDE}{uuid4().hex[:8]}")
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def prune_checkpoints(
    run_folder: Path, keep: int, every: int = 0, losses: Mapping[int, float] | None = None
) -> list[Path]:
    """Remove checkpoints but the newest `keep`, those of every `every`-th step, and the best; returns the removed.

    losses: step -> validation loss; the checkpoint whose step has the lowest is the best.
    Damaged checkpoints are neither counted nor removed. Call it on one rank.
    """
    if keep < 1:
        raise ValueError(f"keep {keep}: at least one checkpoint must stay")
    good = [(path, m) for path, m in list_checkpoints(Path(run_folder)) if m is not None and _complete(path, m)]
    kept = {path for path, _ in good[:keep]}
    if every:
        kept |= {path for path, manifest in good if manifest.step % every == 0}
    scored = [((losses or {}).get(manifest.step, math.nan), path) for path, manifest in good]
    finite = [item for item in scored if math.isfinite(item[0])]
    if finite:
        kept.add(min(finite)[1])
    removed = [path for path, _ in good if path not in kept]
    for path in removed:
        discard(path)
    return removed


def _manifest_or_none(path: Path) -> Manifest | None:
    try:
        return read_manifest(path)
    except InputError:
        return None


def _complete(path: Path, manifest: Manifest) -> bool:
    """Tell whether every file is there in its size: cheap, where a hash reads everything."""
    try:
        return all((path / name).stat().st_size == record.bytes for name, record in manifest.files.items())
    except OSError:
        return False


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
