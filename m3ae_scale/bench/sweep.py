"""A sweep: model size x samples seen x devices, read from one YAML and spelled out into cells. Imports no torch.

name: minutes
experiment: ../quickstart.yaml      # what all cells have in common; relative to this file
set: {data.workers: 0}              # and what they all change of it, KEY: VALUE as in --set
sizes:                              # a size is what it changes; `small`, `base`, ... need no entry
  nano: {model.size: null, model.encoder: {...}, model.decoder: {...}}
layouts:                            # optional: other ways to lay the same training out
  zero3: {engine.deepspeed: zero3_fp32}
grids:                              # each the product of its lists; a cell that stands in several runs once
  - {sizes: [nano, tiny], samples: [4000, 16000]}
  - {sizes: [tiny], samples: [4000], devices: [1, 2]}                     # strong scaling: the same global batch
  - {sizes: [tiny], samples: [4000], devices: [1, 2], per_device: 32}  # weak: 32 samples a step on each
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from m3ae_scale.config import Experiment, Origins, load_experiment
from m3ae_scale.config.load import nearest, read_yaml
from m3ae_scale.config.schema import Positive, Ratio, Section
from m3ae_scale.errors import InputError
from m3ae_scale.sizes import SIZES

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
_PLAIN = "plain"  # the layout of the experiment as it is


class Grid(Section):
    """A product of sizes, samples, devices and layouts."""

    sizes: Annotated[list[_Name], Field(min_length=1)]
    samples: Annotated[list[Positive], Field(min_length=1)]  # seen in training; with `per_device`, on each device
    devices: Annotated[list[Positive], Field(min_length=1)] = [1]
    layouts: Annotated[list[_Name], Field(min_length=1)] = [_PLAIN]
    per_device: Positive | None = None  # samples of a step on each device; None: batch.global on any number of them


class Sweep(Section):
    """The YAML of a sweep."""

    name: _Name
    experiment: str  # a path, relative to the sweep's own
    folder: str = "runs/scaling"  # holds NAME/CELL of each cell and NAME/results.jsonl
    set_: dict[str, Any] = Field(default={}, alias="set")
    warmup: Ratio = 0.1  # share of a cell's samples
    sizes: dict[_Name, dict[str, Any]] = {}
    layouts: dict[_Name, dict[str, Any]] = {}
    grids: Annotated[list[Grid], Field(min_length=1)]


@dataclass(frozen=True)
class Cell:
    """One training of a sweep."""

    number: int  # from 1
    name: str
    size: str
    layout: str
    samples: int
    devices: int
    global_batch: int
    experiment: Path
    overrides: tuple[str, ...]  # KEY=VALUE

    def identity(self, sweep: str) -> dict[str, Any]:
        """Return what this cell is known by in the results: another setting is another cell."""
        names = ("size", "layout", "samples", "devices", "global_batch")
        changed = [text for text in self.overrides if not text.startswith(("name=", "run.folder="))]
        return {"sweep": sweep, **{name: getattr(self, name) for name in names}, "set": changed}

    def load(self) -> tuple[Experiment, Origins]:
        """Read the experiment of this cell. Raises InputError."""
        return load_experiment(self.experiment, list(self.overrides))


def read_sweep(path: Path) -> tuple[Sweep, list[Cell]]:
    """Read the sweep at `path`, and check the experiment of every cell.

    Raises InputError for the first mistake, in the sweep or in what a cell comes to.
    """
    values, _ = read_yaml(path, "the sweep", "keys such as experiment and grids")
    try:
        sweep = Sweep.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}") from None
    experiment = path.parent / sweep.experiment
    base, _ = load_experiment(experiment, _settings(sweep.set_))
    cells: dict[str, Cell] = {}
    for grid in sweep.grids:
        for size, layout, samples, devices in itertools.product(grid.sizes, grid.layouts, grid.samples, grid.devices):
            batch, seen = base.batch.global_, samples
            if grid.per_device is not None:
                batch, seen = grid.per_device * devices, samples * devices
            settings = {
                **sweep.set_,
                **_named(path, "size", size, sweep.sizes, {name: {"model.size": name} for name in SIZES}),
                **_named(path, "layout", layout, sweep.layouts, {_PLAIN: {}}),
            }
            made = _cell(sweep, experiment, len(cells) + 1, (size, layout, seen, devices, batch), settings)
            cells.setdefault(made.name, made)
    for cell in cells.values():
        _check(path, cell)
    return sweep, list(cells.values())


def choose(cells: list[Cell], number: int | None, path: Path) -> list[Cell]:
    """Return the cell of that number alone, or all of them. Raises InputError."""
    if number is None:
        return cells
    if not 1 <= number <= len(cells):
        raise InputError(f"--cell: found {number}, but {path} has the cells 1 to {len(cells)}; --list shows them")
    return [cells[number - 1]]


def _cell(
    sweep: Sweep, experiment: Path, number: int, shape: tuple[str, str, int, int, int], settings: Mapping[str, Any]
) -> Cell:
    size, layout, samples, devices, batch = shape
    name = f"{size}-{samples}-{devices}x{batch // devices}" + (f"-{layout}" if layout != _PLAIN else "")
    steps = max(1, samples // batch)
    overrides = {
        "name": name,
        "run.folder": f"{sweep.folder}/{sweep.name}",
        "run.log_every": max(1, steps // 40),
        "run.validate_every": steps,  # before the first step and after the last
        "run.pictures_every": 0,
        **settings,
        "batch.global": batch,
        "train.length": f"{steps} steps",
        "train.warmup": f"{round(sweep.warmup * steps)} steps",
    }
    return Cell(number, name, size, layout, samples, devices, batch, experiment, tuple(_settings(overrides)))


def _settings(changes: Mapping[str, Any]) -> list[str]:
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in changes.items()]


def _named(
    path: Path, kind: str, name: str, given: Mapping[str, dict[str, Any]], known: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    if name in given:
        return given[name]
    if name not in known:
        raise InputError(f"{path}: grids: unknown {kind} {name!r}{nearest(name, [*given, *known])}")
    return known[name]


def _check(path: Path, cell: Cell) -> None:
    """Refuse a cell that cannot be trained, or whose loss on held-out data could not be measured."""
    experiment, _ = cell.load()
    if not experiment.data.validation:
        raise InputError(
            f"{cell.experiment}: no data.validation, by which {path} compares its cells; add held-out shards"
        )
    if cell.samples < cell.global_batch:
        raise InputError(
            f"{path}: found {cell.samples} samples for a cell whose global batch is {cell.global_batch}; expected at "
            f"least one step"
        )


def _explain(error: ValidationError) -> str:
    first = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(location[-1], _keys(Grid if location[0] == 'grids' else Sweep))}"
    if first["type"] == "missing":
        return f"missing key {key!r}; add it"
    return f"{key}: found {first['input']!r}: {first['msg'].removeprefix('Value error, ')}"


def _keys(section: type[Section]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]
