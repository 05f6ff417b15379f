"""Results as JSON lines: one row a measured cell, appended as it is done, so that a killed sweep keeps what it had.

A row: {"bench": its kind, "cell": {what was asked for}, "status": "ok" or why there is no number, name: number, ...,
"provenance": {date, host, command, hardware, versions, git, ...}}. A cell that stands there already, under any
status, is done: a sweep goes on with the others.
"""

import fcntl
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3ae_scale.errors import InputError
from m3ae_scale.training.json_lines import append_line, read_lines
from m3ae_scale.training.provenance import provenance

Row = dict[str, Any]


def append_row(
    path: str | Path,
    bench: str,
    cell: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    status: str = "ok",
    source: Mapping[str, Any] | None = None,
) -> Row:
    """Append one row and return it; a number that is not finite becomes null.

    values: what was measured, units in the names (step_seconds, peak_memory_bytes); source: the provenance of the
    process that measured, by default this one's. Several processes may append to one file.
    """
    row = {"bench": bench, "cell": dict(cell), "status": status, **values, "provenance": source or provenance()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        append_line(path, _plain(row))
    return row


def read_rows(path: str | Path, bench: str | None = None) -> list[Row]:
    """Read the rows of a file, in order, or those of one kind; a torn line is left out.

    Raises InputError for a file that cannot be read.
    """
    try:
        rows = list(read_lines(path))
    except OSError as error:
        raise InputError(f"{path}: cannot read results ({error.strerror}); give a .jsonl file of a benchmark") from None
    return [row for row in rows if isinstance(row, dict) and (bench is None or row.get("bench") == bench)]


def cells_done(path: str | Path, bench: str) -> set[str]:
    """Return the keys (`cell_key`) of the cells of `bench` that the file holds; none where there is no file."""
    if not Path(path).exists():
        return set()
    return {cell_key(row["cell"]) for row in read_rows(path, bench) if isinstance(row.get("cell"), dict)}


def cell_key(cell: Mapping[str, Any]) -> str:
    """Write a cell as text that is equal for equal cells, whatever the order of their keys."""
    return json.dumps(_plain(dict(cell)), sort_keys=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
