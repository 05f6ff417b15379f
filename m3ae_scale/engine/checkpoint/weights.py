"""Weights out of a checkpoint, for whoever needs the model and not the run; torch.distributed is not involved."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m3ae_scale.engine.checkpoint.files import MappedFile
from m3ae_scale.engine.checkpoint.folder import find_checkpoint
from m3ae_scale.engine.checkpoint.format import Damaged, find_damage, read_manifest
from m3ae_scale.errors import InputError


def read_weights(path: str | Path, prefix: str = "") -> dict[str, Tensor]:
    """Read the float32 parameters whose names start with `prefix`, which is cut off: "encoder." gives the encoder's.

    path: a checkpoint folder, a run folder (its newest good checkpoint), or a file that `checkpoint export` wrote.
    Raises InputError where there is none, it is damaged, or nothing has that prefix.
    """
    path = Path(path)
    if path.is_file():
        file = MappedFile(path)
        found = {name: file for name in file.names}
    else:
        found = _of_checkpoint(find_checkpoint(path), prefix)
    weights = {
        name[len(prefix) :]: as_tensor(file.array(name)).clone()
        for name, file in found.items()
        if name.startswith(prefix)
    }
    if not weights:
        raise InputError(
            f"{path}: no parameter starts with {prefix!r}; its parameters are named as {next(iter(found), '?')}"
        )
    return weights


def open_weights(checkpoint: Path, verify: bool = True) -> dict[str, np.ndarray]:
    """Map the float32 parameters of a checkpoint folder: read-only views, read from the disk as they are touched.

    verify: hash the files first. Raises InputError for a folder that is no checkpoint, or a damaged one.
    """
    return {name: file.array(name) for name, file in _of_checkpoint(checkpoint, "", verify).items()}


def as_tensor(array: np.ndarray) -> Tensor:
    """Return `array`, a view of a mapped file, as a tensor without copying it; nobody may write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _of_checkpoint(path: Path, prefix: str, verify: bool = True) -> dict[str, MappedFile]:
    manifest = read_manifest(path)
    places = {name: kinds["weights"] for name, kinds in manifest.places.items() if name.startswith(prefix)}
    damage = find_damage(path, manifest, set(places.values())) if verify else []
    if damage:
        raise Damaged(damage[0])
    files = {file: MappedFile(path / file) for file in set(places.values())}
    return {name: files[file] for name, file in places.items()}
