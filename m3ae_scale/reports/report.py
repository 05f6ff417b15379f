"""The scaling report: results of benchmarks and sweeps, whatever there is of them, as one self-contained HTML page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from m3ae_scale.errors import InputError
from m3ae_scale.reports.page import Page, write_page
from m3ae_scale.reports.report_loss import loss_sections
from m3ae_scale.reports.report_speed import efficiency_section, memory_sections, peers_section, throughput_section
from m3ae_scale.reports.sources import Sources
from m3ae_scale.training.meters import short

Row = Mapping[str, Any]
SHOWN = ("throughput", "scaling", "peers", "framework")


def write_report(rows: Sequence[Row], path: Path) -> None:
    """Write the page of `rows`, those of bench/results.py, to `path`; rows of other kinds are counted and left out.

    Raises InputError where none of them is of a kind that the report shows.
    """
    known = _latest([row for row in rows if row.get("bench") in SHOWN and isinstance(row.get("cell"), dict)])
    if not known:
        raise InputError(
            f"report: found {len(rows)} rows, none of them of {', '.join(SHOWN)}; give results of m3ae-scale bench"
        )
    sources = Sources(known)
    sections = [
        throughput_section(known, sources),
        *loss_sections(known, sources),
        efficiency_section(known, sources),
        peers_section(known, sources),
        *memory_sections(known, sources),
    ]
    machines = sources.machines()
    others = Counter(str(row.get("bench")) for row in rows if row.get("bench") not in SHOWN)
    left_out = f" Left out: {', '.join(f'{n} rows of {kind}' for kind, n in others.items())}." if others else ""
    page = Page(
        title="M3AE scaling report",
        lead=f"Measured on {'; '.join(machines) or 'a machine that the results do not name'}.{left_out}",
        tiles=_tiles(known),
        sections=[section for section in sections if section is not None],
        facts=sources.facts(),
    )
    write_page(page, path)


def _latest(rows: Sequence[Row]) -> list[Row]:
    """Keep the last row of each cell on each machine: files may overlap, and a failed cell may have been run again."""
    latest: dict[str, Row] = {}
    for row in rows:
        provenance = row.get("provenance") or {}
        key = str(
            (row["bench"], sorted(map(str, row["cell"].items())), provenance.get("host"), provenance.get("hardware"))
        )
        if key not in latest or row["status"] == "ok" or latest[key]["status"] != "ok":
            latest[key] = row
    return list(latest.values())


def _tiles(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    done = [row for row in rows if row["status"] == "ok"]
    tiles = [("cells", f"{len(done)}", f"of {len(rows)} with a figure")]
    sized = [row for row in done if row.get("parameters")]
    if sized:
        largest = max(sized, key=lambda row: row["parameters"])
        tiles.append(("largest model", short(largest["parameters"]), f"parameters: {largest['cell'].get('size')}"))
    fast = [row for row in done if row.get("samples_per_second")]
    if fast:
        best = max(fast, key=lambda row: row["samples_per_second"])
        tiles.append(("most samples/s", f"{best['samples_per_second']:,.4g}", f"{best['cell'].get('size', '')}"))
    useful = [row for row in done if row.get("mfu_ceiling")]
    if useful:
        best = max(useful, key=lambda row: row["mfu_ceiling"])
        tiles.append(
            ("highest MFU", f"{best['mfu_ceiling']:.0%}", f"of the matmul ceiling: {best['cell'].get('size')}")
        )
    trained = [row for row in done if row.get("validation_loss")]
    if trained:
        best = min(trained, key=lambda row: row["validation_loss"])
        tiles.append(("lowest loss", f"{best['validation_loss']:.4f}", f"held-out: {best['cell'].get('size')}"))
    return tiles
