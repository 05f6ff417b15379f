"""Weights out of whatever file or folder: a run or checkpoint of ours, an exported file, a model.pkl, a MAE .pth."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3ae_scale.engine.checkpoint.files import MappedFile
from m3ae_scale.engine.checkpoint.folder import find_checkpoint
from m3ae_scale.engine.checkpoint.format import read_manifest
from m3ae_scale.engine.checkpoint.weights import open_weights
from m3ae_scale.errors import InputError
from m3ae_scale.interop.found import Found
from m3ae_scale.interop.mae import read_mae
from m3ae_scale.interop.model_pkl import read_model_pkl

_ZIP, _LEGACY_TORCH = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"


def read_found(path: Path, verify: bool = True) -> Found:
    """Read the parameters at `path`, told what it is by what it holds and not by its name.

    path: a run folder, a checkpoint folder, an exported safetensors file, a model.pkl or a MAE .pth
    verify: hash the files of a checkpoint of ours first
    Raises InputError for anything else, or damage.
    """
    if path.is_dir():
        return _of_run(path, verify)
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a run folder, a checkpoint, a safetensors file, a "
            "model.pkl of m3ae_public or a .pth of MAE"
        ) from None
    if head[5:9] == b"\0\0\0{":  # the length of a header, and its first character
        return _of_file(path)
    if head.startswith(_ZIP):
        return read_mae(path)
    if head.startswith(_LEGACY_TORCH):
        raise InputError(f"{path}: a .pth of torch before 1.6; load it there and save it again with torch.save")
    if head[:1] in (b"\x80", b"(", b"}", b"c"):
        return read_model_pkl(path)
    raise InputError(
        f"{path}: begins with {head[:4]!r}, expected a safetensors file, a model.pkl of m3ae_public or a .pth of MAE"
    )


def _of_run(path: Path, verify: bool) -> Found:
    checkpoint = find_checkpoint(path)
    manifest = read_manifest(checkpoint)
    words = next((p for p in (folder / "vocab.txt" for folder in (path, *path.parents)) if p.is_file()), None)
    return _of_ours(
        checkpoint, open_weights(checkpoint, verify=verify), manifest.progress.get("experiment"), manifest.step, words
    )


def _of_file(path: Path) -> Found:
    try:
        file = MappedFile(path)
        values = {name: file.array(name) for name in file.names}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no safetensors file of float32 or bfloat16 ({error}); export it again") from None
    told = {key: _json(text) for key, text in file.metadata.items()}
    if isinstance(told.get("experiment"), dict):
        return _of_ours(path, values, told["experiment"], told.get("step"), None)
    if not isinstance(told.get("model"), dict):
        return Found(path, "safetensors", values, model={})
    pixels = told.get("pixels")
    return Found(
        path,
        kind=file.metadata.get("source", "safetensors"),
        values=values,
        model=told["model"],
        step=told.get("step"),
        pixels=(tuple(pixels[0]), tuple(pixels[1])) if pixels else None,
        channel_pixels=told.get("channel_pixels", True),
        grid=told.get("grid"),
        notes=tuple(told.get("notes", ())),
    )


def _of_ours(
    path: Path, values: Mapping[str, Any], experiment: dict[str, Any] | None, step: int | None, words: Path | None
) -> Found:
    experiment = experiment or {}
    augment = experiment.get("data", {}).get("augment", {})
    pixels = (tuple(augment["mean"]), tuple(augment["std"])) if augment else None
    return Found(
        path,
        kind="m3ae_scale",
        values=values,
        model=experiment.get("model", {}),
        step=step,
        pixels=pixels,
        vocabulary=words,
        experiment=experiment or None,
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
