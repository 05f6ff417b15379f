"""A file of JSON lines that grows while a run lives: a writer that was killed inside its line costs that line alone."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append_line(path: str | Path, row: Mapping[str, Any]) -> None:
    """Append `row` as a line of its own, also where the last writer was killed inside its line."""
    with open(path, "ab+") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(row).encode() + b"\n")


def read_lines(path: str | Path) -> Iterator[Any]:
    """Yield what each line holds; a torn line is left out. Raises OSError for a file that cannot be read."""
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
