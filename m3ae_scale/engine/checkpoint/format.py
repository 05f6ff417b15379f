"""What a checkpoint says of itself: the manifest, written last, and damage found by comparing with it. No torch.

A checkpoint is a folder of safetensors files and manifest.json. Each parameter is there three times under the model's
name for it: its fp32 value in weights-*.safetensors, Adam's moments in exp_avg-* and exp_avg_sq-*. The tensors are
whole: nothing in the folder depends on how many ranks wrote it. Everything else is in the manifest.
"""

import json
import math
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from m3ae_scale.engine.checkpoint.files import FileRecord, hash_file
from m3ae_scale.errors import InputError

FORMAT = 1  # raised when an older reader would misread a newer checkpoint
KINDS = ("weights", "exp_avg", "exp_avg_sq")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """Everything of a checkpoint but its tensors."""

    step: int  # optimizer steps taken by the run
    serial: int  # counts the checkpoints of a run folder: the newest has the highest, whatever the clock said
    saved: str  # date and time, UTC
    adam_steps: int  # what Adam's bias correction counts
    written_by: dict[str, Any]  # topology, ZeRO stage, precision, versions: for people, loading does not need them
    progress: dict[str, Any]  # what the training loop gave: cursor, experiment, MLflow run id, ...
    shapes: dict[str, tuple[int, ...]]  # of each parameter, whole
    places: dict[str, dict[str, str]]  # parameter -> kind -> file
    files: dict[str, FileRecord]

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def bytes(self) -> int:
        """Size of all tensor files."""
        return sum(record.bytes for record in self.files.values())


class Damaged(InputError):
    """A checkpoint that is not what was written; its text says what and what to do."""

    @property
    def what(self) -> str:
        """Which file is bad and how, in one line."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.what}; take an older checkpoint: m3ae-scale checkpoint ls RUN_FOLDER shows them"


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write and flush manifest.json into `folder`; its last key is the hash of all the others."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "step": manifest.step,
        "serial": manifest.serial,
        "saved": manifest.saved,
        "adam_steps": manifest.adam_steps,
        "written_by": manifest.written_by,
        "progress": manifest.progress,
        "files": {name: record._asdict() for name, record in sorted(manifest.files.items())},
        "tensors": {name: {"shape": list(shape), **manifest.places[name]} for name, shape in manifest.shapes.items()},
    }
    document = json.loads(json.dumps(document))  # as it will be read: lists for tuples, text for number keys
    document["manifest_xxh3"] = _digest(document)
    with open(folder / MANIFEST, "w") as file:
        json.dump(document, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the checkpoint `folder`.

    Raises InputError where there is no such folder or this version cannot read it, Damaged where the manifest is
    missing, torn or altered.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: not there; give the folder of a checkpoint, as runs/NAME/checkpoints/step_*")
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: not readable ({' '.join(str(error).split())})") from None
    if not isinstance(document, dict) or document.pop("manifest_xxh3", None) != _digest(document):
        raise Damaged(f"{path}: differs from what was written (its own hash does not match)")
    if document["format"] > FORMAT:
        raise InputError(
            f"{path}: format {document['format']}, this version reads up to {FORMAT}; use the version that wrote it "
            f"({document['written_by'].get('versions', {}).get('m3ae_scale', 'unknown')}) or a newer one"
        )
    tensors = document["tensors"]
    return Manifest(
        step=document["step"],
        serial=document["serial"],
        saved=document["saved"],
        adam_steps=document["adam_steps"],
        written_by=document["written_by"],
        progress=document["progress"],
        shapes={name: tuple(entry["shape"]) for name, entry in tensors.items()},
        places={name: {kind: entry[kind] for kind in KINDS} for name, entry in tensors.items()},
        files={name: FileRecord(**record) for name, record in document["files"].items()},
    )


def find_damage(folder: Path, manifest: Manifest, names: Iterable[str] | None = None, threads: int = 4) -> list[str]:
    """Compare the files of `folder` (those in `names`, or all) with the manifest; returns one line a bad file."""
    chosen = sorted(manifest.files if names is None else names)
    with ThreadPoolExecutor(threads) as pool:  # hashing and reading both leave the interpreter free
        found = pool.map(lambda name: _damage_of(folder / name, manifest.files[name]), chosen)
        return [line for line in found if line is not None]


def require_good(folder: Path) -> Manifest:
    """Read the manifest and hash every file; raises Damaged with the first thing that is wrong."""
    manifest = read_manifest(folder)
    damage = find_damage(folder, manifest)
    if damage:
        raise Damaged(damage[0])
    return manifest


def _damage_of(path: Path, expected: FileRecord) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            return f"{path}: {size} bytes, {expected.bytes} were written"
        if hash_file(path).xxh3 != expected.xxh3:
            return f"{path}: its hash differs from that of what was written"
    except OSError as error:
        return f"{path}: not readable ({error.strerror})"
    return None


def _digest(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(text.encode())
