"""Weights out of a checkpoint, for whoever needs the model and not the run; torch.distributed is not involved."""

from pathlib import Path

import torch
from torch import Tensor

from m3ae_scale.engine.checkpoint.files import MappedFile
from m3ae_scale.engine.checkpoint.folder import latest_checkpoint
from m3ae_scale.engine.checkpoint.format import MANIFEST, Damaged, find_damage, read_manifest
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
        name[len(prefix) :]: torch.from_numpy(file.array(name)).clone()
        for name, file in found.items()
        if name.startswith(prefix)
    }
    if not weights:
        raise InputError(
            f"{path}: no parameter starts with {prefix!r}; its parameters are named as {next(iter(found), '?')}"
        )
    return weights


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


def _of_checkpoint(path: Path, prefix: str) -> dict[str, MappedFile]:
    try:
        manifest = read_manifest(path)
        places = {name: kinds["weights"] for name, kinds in manifest.places.items() if name.startswith(prefix)}
        damage = find_damage(path, manifest, set(places.values()))
    except Damaged as error:
        damage = [str(error)]
    if damage:
        raise InputError(f"{damage[0]}; take an older checkpoint: m3ae-scale checkpoint ls RUN_FOLDER shows them")
    files = {file: MappedFile(path / file) for file in set(places.values())}
    return {name: files[file] for name, file in places.items()}
