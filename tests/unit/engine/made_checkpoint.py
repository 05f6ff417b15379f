"""Checkpoints of a few small tensors, made with the real writer and without an engine."""

from pathlib import Path
from typing import Any

import numpy as np

from m3ae_scale.engine.checkpoint.files import TensorFile
from m3ae_scale.engine.checkpoint.folder import begin, next_serial, publish
from m3ae_scale.engine.checkpoint.format import KINDS, Manifest, write_manifest

SHAPES = {"encoder.embed.text.weight": (11, 4), "encoder.cls_token": (4,), "decoder.norm.weight": (3,)}


def values(kind: str, name: str, shape: tuple[int, ...], step: int) -> np.ndarray:
    rng = np.random.default_rng([step, len(name), KINDS.index(kind)])
    return rng.standard_normal(shape).astype(np.float32)


def make_checkpoint(run: Path, step: int, shapes: dict[str, tuple[int, ...]] = SHAPES, **progress: Any) -> Path:
    """Write and publish the checkpoint of `step`: one file a kind."""
    aside = begin(run, step)
    files = {}
    for kind in KINDS:
        name = f"{kind}-00001.safetensors"
        file = TensorFile(aside / name, list(shapes.items()))
        for tensor, shape in shapes.items():
            file.write(values(kind, tensor, shape, step))
        files[name] = file.finish()
    manifest = Manifest(
        step=step,
        serial=next_serial(run),
        saved="2026-01-01T00:00:00+00:00",
        adam_steps=step,
        written_by={"tensor": 1, "data": 1, "zero_stage": 0, "precision": "fp32", "versions": {"m3ae_scale": "0"}},
        progress={"step": step, **progress},
        shapes=dict(shapes),
        places={name: {kind: f"{kind}-00001.safetensors" for kind in KINDS} for name in shapes},
        files=files,
    )
    write_manifest(manifest, aside)
    return publish(aside)
