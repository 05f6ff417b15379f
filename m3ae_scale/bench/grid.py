"""What to measure: a grid of cells from lists of choices, read from a YAML or given as options. Imports no torch."""

import itertools
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from m3ae_scale.config.load import nearest, read_yaml
from m3ae_scale.errors import InputError
from m3ae_scale.sizes import SIZES


@dataclass(frozen=True)
class ThroughputCell:
    """One measurement: a model size on this hardware in one arrangement."""

    size: str = "tiny"
    micro_batch: int = 32  # samples per rank and forward pass
    devices: int = 1
    tensor_parallel: int = 1
    sequence_parallel: bool = False
    zero_stage: int = 1
    offload: float = 0.0  # share of the optimizer on the host; at ZeRO-3 a part is possible, and all parameters go too
    pin_memory: bool = True  # of what is offloaded: faster, and up to twice the bytes
    precision: str = "bf16"
    recompute: str = "none"
    attention: str = "auto"
    layer_norm: str = "auto"
    linear: str = "auto"
    text_loss: str = "auto"
    compile: str = "none"
    text: bool = True  # pairs; False: images alone
    steps: int = 10  # timed steps of each repeat
    repeats: int = 3
    warmup: int = 3  # steps before, untimed

    @property
    def name(self) -> str:
        """What differs from the defaults, in one line."""
        default = ThroughputCell()
        changed = [f"{k} {v}" for k, v in asdict(self).items() if k != "size" and v != getattr(default, k)]
        return ", ".join([self.size, *changed])


def read_grid(path: Path) -> list[ThroughputCell]:
    """Read the cells of a YAML: `grids`, a list of mappings from a key of a cell to a value or a list of them.

    Each mapping is the product of its lists; a cell that stands in several is measured once. Raises InputError.
    """
    values, _ = read_yaml(path, "the grid", "a key grids, a list of mappings such as {size: [tiny, small]}")
    grids = values.pop("grids", None)
    if values:
        raise InputError(f"{path}: unknown key {next(iter(values))!r}; expected grids alone")
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
        raise InputError(f"{path}: grids: expected a list of mappings such as {{size: [tiny, small]}}")
    cells: dict[ThroughputCell, None] = {}
    for grid in grids:
        choices = {key: value if isinstance(value, list) else [value] for key, value in grid.items()}
        cells |= dict.fromkeys(product(choices, str(path)))
    return list(cells)


def product(choices: dict[str, list[Any]], place: str) -> list[ThroughputCell]:
    """Make the cells of every combination of `choices`; `place` says in an error where they stand."""
    hints, known = get_type_hints(ThroughputCell), [field.name for field in fields(ThroughputCell)]
    for key, values in choices.items():
        if key not in known:
            raise InputError(f"{place}: unknown key {key!r}{nearest(str(key), known)}")
        for value in values:
            wanted = int | float if hints[key] is float else hints[key]
            if not isinstance(value, wanted) or (isinstance(value, bool) and hints[key] is not bool):
                raise InputError(f"{place}: {key}: found {value!r}, expected {hints[key].__name__}")
    combinations = itertools.product(*choices.values())
    cells = [replace(ThroughputCell(), **dict(zip(choices, values, strict=True))) for values in combinations]
    for cell in cells:
        _check(cell, place)
    return cells


def cell_of(text: str) -> ThroughputCell:
    """Read a cell back from the JSON of `asdict`."""
    return ThroughputCell(**json.loads(text))


def _check(cell: ThroughputCell, place: str) -> None:
    if cell.size not in SIZES:
        raise InputError(f"{place}: size: unknown {cell.size!r}{nearest(cell.size, list(SIZES))}")
    for key in ("micro_batch", "devices", "tensor_parallel", "steps", "repeats"):
        if getattr(cell, key) < 1:
            raise InputError(f"{place}: {key}: found {getattr(cell, key)}, expected at least 1")
    if cell.devices % cell.tensor_parallel:
        raise InputError(f"{place}: tensor_parallel {cell.tensor_parallel} does not divide devices {cell.devices}")
    if cell.precision not in ("bf16", "fp32"):
        raise InputError(f"{place}: precision: found {cell.precision!r}, expected bf16 or fp32")
    if cell.zero_stage not in range(4) or (cell.offload and cell.zero_stage < 2):
        raise InputError(f"{place}: zero_stage: found {cell.zero_stage}, expected 0 to 3, and 2 or 3 with offload")
    if cell.offload not in (0, 1) and not (cell.zero_stage == 3 and 0 < cell.offload < 1):
        raise InputError(f"{place}: offload: found {cell.offload}, expected 0 or 1, or a share between at ZeRO stage 3")
