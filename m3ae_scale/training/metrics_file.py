"""The run's metrics as JSON lines: one row a log point, appended, so that a killed run keeps what it had.

A row is {"step": k, name: number, ...}. Rows of one step are one row written in parts (training, then validation).
A resume at step k writes {"resumed_at": k}: what an earlier life wrote past k is superseded.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m3ae_scale.training.json_lines import append_line, read_lines


def append_metrics(path: str | Path, step: int, values: Mapping[str, float]) -> None:
    """Append the `values` measured at `step`; a value that is not finite is written as null."""
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    append_line(path, {"step": step, **finite})


def mark_resume(path: str | Path, step: int) -> None:
    """Note that training goes on from `step`: rows past it no longer count."""
    append_line(path, {"resumed_at": step})


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read one row a step, in order of steps; null reads as nan; a torn line (the writer was killed) is left out."""
    rows: dict[int, dict[str, Any]] = {}
    for written in read_lines(path):
        if "resumed_at" in written:
            rows = {step: row for step, row in rows.items() if step <= written["resumed_at"]}
            continue
        values = {name: math.nan if value is None else value for name, value in written.items()}
        rows.setdefault(written["step"], {}).update(values)
    return [rows[step] for step in sorted(rows)]


def trained_seconds(path: str | Path, step: int) -> float:
    """Return the seconds of training behind `step`, by its last row that has them; 0 without one."""
    if not Path(path).exists():
        return 0.0
    timed = [row["seconds"] for row in read_metrics(path) if "seconds" in row and row["step"] <= step]
    return timed[-1] if timed else 0.0
