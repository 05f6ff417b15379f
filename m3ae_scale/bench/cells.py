"""Runs the cells of a throughput grid, each in processes of its own, those that are done left out. Imports no torch."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from m3ae_scale.bench.grid import ThroughputCell
from m3ae_scale.bench.results import append_row, cell_key, cells_done, read_rows
from m3ae_scale.errors import EXIT_MISTAKE
from m3ae_scale.parallel.launch import launch_local

BENCH = "throughput"
EXIT_MEMORY = 77  # see throughput.py, which needs torch


def run_cells(cells: Sequence[ThroughputCell], output: Path) -> int:
    """Measure what is open; a cell that fails is a row that says why, and the others go on. Returns an exit code."""
    for place, cell in enumerate(cells, start=1):
        print(f"{place} of {len(cells)}: {cell.name}", end="", flush=True)
        if cell_key(asdict(cell)) in cells_done(output, BENCH):
            print(" (measured before)")
            continue
        print(flush=True)
        command = [sys.executable, "-m", "m3ae_scale.bench.throughput", json.dumps(asdict(cell)), str(output)]
        code = launch_local(cell.devices, command)
        if code in (130, 143):  # Ctrl-C or a job's end: this cell is open still
            return code
        if code:
            status = why(code)
            append_row(output, BENCH, asdict(cell), {}, status=status)
            print(f"   {status}", flush=True)
    return 0


def why(code: int) -> str:
    """Say what an exit code of a cell's processes means."""
    if code == EXIT_MEMORY:
        return "out of memory"
    if code == 128 + 9:
        return "killed, probably out of host memory"
    return "refused" if code == EXIT_MISTAKE else f"failed with exit code {code}"


def table(cells: Sequence[ThroughputCell], output: Path) -> Iterator[str]:
    """Yield the rows of `cells` as lines of a Markdown table."""
    rows = {cell_key(row["cell"]): row for row in read_rows(output, BENCH)} if output.exists() else {}
    yield "| cell | samples/s | tokens/s | step s (p10 to p90) | MFU of ceiling | of datasheet | peak GiB | W |"
    yield "|---|---|---|---|---|---|---|---|"
    for cell in cells:
        row = rows.get(cell_key(asdict(cell)))
        if row is None or row["status"] != "ok":
            yield f"| {cell.name} | {row['status'] if row else 'not measured'} | | | | | | |"
            continue
        spread = f"{row['step_seconds']:.3g} ({row['step_seconds_p10']:.3g} to {row['step_seconds_p90']:.3g})"
        shares = [f"{row[k]:.1%}" if row[k] is not None else "-" for k in ("mfu_ceiling", "mfu_datasheet")]
        cells_text = [f"{row['samples_per_second']:.4g}", f"{row['tokens_per_second']:.4g}", spread, *shares]
        cells_text += [f"{row['peak_memory_bytes'] / 2**30:.2f}", f"{row['watts']:.0f}" if row["watts"] else "-"]
        yield f"| {cell.name} | {' | '.join(cells_text)} |"
