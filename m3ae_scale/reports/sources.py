"""Where the rows of a report come from: each machine, software and commit once, numbered for the tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from m3ae_scale.reports.page import facts_of

Row = Mapping[str, Any]


class Sources:
    """Numbers the provenances of rows from 1, those that differ in date and command alone as one."""

    def __init__(self, rows: Sequence[Row]):
        self._known: dict[str, list[Row]] = {}
        for row in rows:
            self._known.setdefault(_identity(row), []).append(row)

    def mark(self, row: Row) -> str:
        """Return how a table names the source of `row`: "[1]"."""
        return f"[{list(self._known).index(_identity(row)) + 1}]"

    def facts(self) -> list[tuple[str, str]]:
        """Return a line a source: its mark, and all that it says."""
        return [(f"[{number}]", _describe(rows)) for number, rows in enumerate(self._known.values(), start=1)]

    def machines(self) -> list[str]:
        """Return the machines that were measured on, each once."""
        found = (dict(facts_of({"hardware": rows[0].get("provenance", {}).get("hardware")})).get("hardware", "")
                 for rows in self._known.values())  # fmt: skip
        return [name for name in dict.fromkeys(found) if name]


def _identity(row: Row) -> str:
    provenance = row.get("provenance") or {}
    return str({key: provenance.get(key) for key in ("host", "hardware", "versions", "git", "store")})


def _describe(rows: Sequence[Row]) -> str:
    provenance = dict(rows[0].get("provenance") or {})
    dates = sorted(str((row.get("provenance") or {}).get("date", "")) for row in rows)
    commands = list(dict.fromkeys((row.get("provenance") or {}).get("command", "") for row in rows))
    provenance["date"] = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    provenance["command"] = commands[0] + (f" (and {len(commands) - 1} more)" if len(commands) > 1 else "")
    kinds = sorted({str(row.get("bench")) for row in rows})
    said = "; ".join(f"{name}: {text}" for name, text in facts_of(provenance) if text)
    return f"{len(rows)} row{'s' * (len(rows) > 1)} of {', '.join(kinds)}. {said}"
