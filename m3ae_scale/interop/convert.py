"""Somebody's weights as one safetensors file under our names, with what their file told in its metadata."""

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors.numpy import save_file

from m3ae_scale.errors import InputError
from m3ae_scale.interop.found import listed
from m3ae_scale.interop.read import read_found


def import_weights(path: Path, output: Path) -> tuple[str, dict[str, Any]]:
    """Write what `path` holds as the file `output`; returns a line about it, and the section `model` that it fits.

    The file appears when it is complete. Raises InputError for a file that cannot be read, or an output that exists.
    """
    if output.exists():
        raise InputError(f"{output}: exists; remove it or give another name")
    found = read_found(path)
    told = {
        "source": found.kind,
        "step": json.dumps(found.step),
        "model": json.dumps(found.model),
        "pixels": json.dumps(found.pixels),
        "channel_pixels": json.dumps(found.channel_pixels),
        "grid": json.dumps(found.grid),
        "notes": json.dumps(found.notes),
    }
    if found.experiment is not None:
        told["experiment"] = json.dumps(found.experiment)
    aside = output.with_name(f"{output.name}.tmp-{uuid4().hex[:8]}")
    try:
        save_file({n: np.ascontiguousarray(v) for n, v in found.values.items()}, aside, {"format": "pt", **told})
        aside.rename(output)
    except OSError as problem:
        raise InputError(f"{output}: cannot be written ({problem.strerror}); give a place with room") from None
    finally:
        aside.unlink(missing_ok=True)
    step = "" if found.step is None else f", step {found.step}"
    notes = "".join(f"; {note}" for note in found.notes)
    line = f"{output}: {len(found.values)} parameters of {path} ({found.kind}{step}); not used: {listed(found.unused)}"
    return line + notes, found.model
