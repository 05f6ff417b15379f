"""What differs between two checkpoints: experiment, shapes, and how far the tensors are apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3ae_scale.engine.checkpoint.files import MappedFile
from m3ae_scale.engine.checkpoint.format import KINDS, Manifest, read_manifest

_MISSING = "-"


@dataclass(frozen=True)
class Apart:
    """How far one tensor is apart in two checkpoints."""

    kind: str
    name: str
    largest: float  # of the absolute differences; infinite where one holds a number that is not finite
    relative: float  # norm of the difference over the norm of the first


@dataclass(frozen=True)
class Comparison:
    """Two checkpoints side by side."""

    facts: dict[str, tuple[Any, Any]]  # dotted key -> (first, second), where they differ
    tensors: list[Apart]  # those that differ, the furthest apart first
    equal: int  # tensors that are equal bit for bit


def compare(one: Path, other: Path) -> Comparison:
    """Compare the checkpoint folders `one` and `other`, one tensor in memory at a time."""
    first, second = read_manifest(one), read_manifest(other)
    a, b = dict(_facts(first)), dict(_facts(second))
    facts = {key: (a.get(key, _MISSING), b.get(key, _MISSING)) for key in {**a, **b} if a.get(key) != b.get(key)}
    common = [name for name, shape in first.shapes.items() if second.shapes.get(name) == shape]
    apart = []
    for kind in KINDS:
        for name in common:
            x, y = (_array(folder, manifest, kind, name) for folder, manifest in ((one, first), (other, second)))
            if not np.array_equal(x, y):
                apart.append(_apart(kind, name, x, y))
    apart.sort(key=lambda tensor: -tensor.relative)
    return Comparison(facts, apart, len(KINDS) * len(common) - len(apart))


def _array(folder: Path, manifest: Manifest, kind: str, name: str) -> np.ndarray:
    return MappedFile(folder / manifest.places[name][kind]).array(name)


def _apart(kind: str, name: str, x: np.ndarray, y: np.ndarray) -> Apart:
    difference = x.astype(np.float64) - y
    largest = float(np.abs(difference).max())
    norm = float(np.linalg.norm(x.astype(np.float64)))
    relative = float(np.linalg.norm(difference)) / norm if norm else np.inf
    if not np.isfinite(largest):
        return Apart(kind, name, np.inf, np.inf)
    return Apart(kind, name, largest, relative)


def _facts(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    yield "step", manifest.step
    yield "adam_steps", manifest.adam_steps
    yield from _leaves(manifest.written_by, "written_by.")
    yield from _leaves(manifest.progress, "progress.")
    for name, shape in manifest.shapes.items():
        yield f"shape of {name}", shape


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
