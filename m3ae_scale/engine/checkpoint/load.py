"""Loading: each rank reads from the mapped files exactly what it holds, whatever topology they were saved on.

1. the model is compared with the manifest: a mistake is told before anything is read
2. every file is hashed, the ranks sharing the work
3. each rank copies its fragments into the fp32 masters and Adam's moments
4. the masters become the weights that the model computes with
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from m3ae_scale.engine.build import Built
from m3ae_scale.engine.checkpoint.files import MappedFile
from m3ae_scale.engine.checkpoint.folder import list_checkpoints, say_passed_over
from m3ae_scale.engine.checkpoint.format import KINDS, Damaged, Manifest, find_damage, read_manifest
from m3ae_scale.engine.checkpoint.state import Held, fragment, held_parameters, open_moments, refresh_weights
from m3ae_scale.engine.checkpoint.weights import as_tensor
from m3ae_scale.errors import InputError
from m3ae_scale.parallel.groups import Groups

T = TypeVar("T")


def load_checkpoint(path: Path, built: Built, groups: Groups) -> dict[str, Any]:
    """Put the training state of the checkpoint folder `path` into a fresh or a used engine. Collective.

    Returns the progress that was given to save_checkpoint. Raises InputError, on every rank, for a checkpoint that is
    damaged or of another model.
    """
    path = Path(path)
    manifest = _agreed(groups, lambda: read_manifest(path))
    held = held_parameters(built)
    check_model(path, manifest, {h.name: h.shape for h in held})
    _agreed(groups, lambda: _check_share(path, manifest, groups))
    open_moments(built, manifest.adam_steps)
    _agreed(groups, lambda: _read_share(path, manifest, built, held, groups))
    refresh_weights(built)
    _set_counters(built, manifest.step)
    return manifest.progress


def load_latest(run_folder: Path, built: Built, groups: Groups) -> dict[str, Any] | None:
    """Load the newest good checkpoint of the run, hashed by all ranks together. Collective.

    Says so in a line for each damaged one that it passes over. Returns its progress, None where the run has none.
    Raises InputError, on every rank, where it is of another model or all are damaged.
    """
    told: list[Any] = [[path for path, _ in list_checkpoints(Path(run_folder))] if groups.first else None]
    dist.broadcast_object_list(told, src=0, device=groups.device)
    for path in told[0]:
        try:
            return load_checkpoint(path, built, groups)
        except Damaged as problem:  # found before anything of the engine was changed
            if groups.first:
                say_passed_over(path, problem)
    if told[0]:
        raise InputError(
            f"{run_folder}: all its {len(told[0])} checkpoints are damaged; restore one, or begin another run with "
            f"--set name=ANOTHER"
        )
    return None


def check_model(path: Path, manifest: Manifest, shapes: dict[str, tuple[int, ...]]) -> None:
    """Compare the parameters of this run with those of the checkpoint.

    Raises InputError that names both.
    """
    words = "encoder.embed.text.weight"
    if words in shapes and words in manifest.shapes and shapes[words][0] != manifest.shapes[words][0]:
        raise InputError(
            f"{path}: trained with a vocabulary of {manifest.shapes[words][0]} words, this run's data.tokenizer has "
            f"{shapes[words][0]}; give the tokenizer that the run began with, or start a new run"
        )
    advice = "restore the model section of the experiment that the run began with, or start a new run"
    for name, shape in shapes.items():
        if name not in manifest.shapes:
            raise InputError(f"{path}: has no {name}, which this run's model has; {advice}")
        if shape != manifest.shapes[name]:
            raise InputError(f"{path}: {name} is {manifest.shapes[name]} there, {shape} in this run's model; {advice}")
    for name in manifest.shapes:
        if name not in shapes:
            raise InputError(f"{path}: holds {name}, which this run's model lacks; {advice}")


def _check_share(path: Path, manifest: Manifest, groups: Groups) -> None:
    """Hash this rank's share of the files."""
    largest_first = sorted(manifest.files, key=lambda name: (-manifest.files[name].bytes, name))
    damage = find_damage(path, manifest, largest_first[groups.rank :: groups.topology.world])
    if damage:
        raise Damaged(damage[0])


@torch.no_grad()
def _read_share(path: Path, manifest: Manifest, built: Built, held: list[Held], groups: Groups) -> None:
    """Copy every fragment that this rank holds out of the files."""
    for kind in KINDS:
        files: dict[str, MappedFile] = {}
        for h in (h for h in held if h.master is not None):
            name = manifest.places[h.name][kind]
            if name not in files:
                files[name] = MappedFile(path / name)
            fragment(built, h, kind).copy_(_read(files[name], h, groups))


def _read(file: MappedFile, held: Held, groups: Groups) -> Tensor:
    """Return what `held` covers of the tensor in `file`; only its pages are read."""
    part = as_tensor(file.array(held.name))
    if held.shard is not None:
        part = held.shard.part(part, groups.tensor_rank, groups.topology.tensor)
    return part.reshape(-1)[held.start : held.start + held.count]


def _set_counters(built: Built, step: int) -> None:
    engine = built.engine
    engine.global_steps = step
    engine.global_samples = step * engine.train_batch_size()
    engine.micro_steps = step * engine.gradient_accumulation_steps()


def _agreed(groups: Groups, work: Callable[[], T]) -> T:
    """Do `work` on every rank and return this rank's result; the first InputError of any is raised on all."""
    result, error = None, None
    try:
        result = work()
    except InputError as problem:
        error = problem
    except OSError as problem:
        error = Damaged(f"{problem.filename}: {problem.strerror}")
    errors: list[InputError | None] = [None] * groups.topology.world
    dist.all_gather_object(errors, error)
    for first in errors:
        if first is not None:
            raise first
    return result  # type: ignore[return-value]
