"""Weights out of a checkpoint into one safetensors file, for anybody who reads that format."""

import json
import os
from pathlib import Path

import numpy as np
import torch

from m3ae_scale.engine.checkpoint.files import ITEM_BYTES, MappedFile, TensorFile
from m3ae_scale.engine.checkpoint.format import Damaged, find_damage, read_manifest
from m3ae_scale.engine.checkpoint.weights import as_tensor
from m3ae_scale.errors import InputError

PARTS = {"model": "", "encoder": "encoder."}  # what can be exported -> how its parameters' names start
PRECISIONS = {"fp32": "F32", "bf16": "BF16"}


def export_weights(checkpoint: Path, output: Path, part: str = "model", precision: str = "fp32") -> int:
    """Write the `part` of the checkpoint folder as the file `output`, tensor by tensor; returns its bytes.

    Names stay as they are in the model. The file's metadata hold the step and, as JSON, the experiment. The file
    appears when it is complete. Raises InputError for a damaged checkpoint or an output that exists.
    """
    if output.exists():
        raise InputError(f"{output}: exists; remove it or give another name")
    manifest = read_manifest(checkpoint)
    chosen = {n: kinds["weights"] for n, kinds in manifest.places.items() if n.startswith(PARTS[part])}
    damage = find_damage(checkpoint, manifest, set(chosen.values()))
    if damage:
        raise Damaged(damage[0])
    metadata = {
        "format": "pt",
        "step": str(manifest.step),
        "experiment": json.dumps(manifest.progress.get("experiment")),
    }
    aside = output.with_name(f"{output.name}.tmp-{os.getpid()}")
    entries = [(name, manifest.shapes[name]) for name in chosen]
    try:
        file = TensorFile(aside, entries, PRECISIONS[precision], metadata)
        maps = {name: MappedFile(checkpoint / name) for name in set(chosen.values())}
        for name, place in chosen.items():
            file.write(_converted(maps[place].array(name), precision))
        size = file.finish().bytes
        aside.rename(output)
    except OSError as error:
        raise InputError(f"{output}: cannot be written ({error.strerror}); give a place with room") from None
    finally:
        aside.unlink(missing_ok=True)
    return size


def _converted(array: np.ndarray, precision: str) -> np.ndarray:
    if precision == "fp32":
        return array
    rounded: np.ndarray = as_tensor(array).to(torch.bfloat16).view(torch.int16).numpy()
    assert rounded.itemsize == ITEM_BYTES["BF16"]
    return rounded
