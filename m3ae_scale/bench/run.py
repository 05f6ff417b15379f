"""The cells of a sweep one after the other on this machine, those that are done left out. Imports no torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from m3ae_scale.bench.results import cell_key, cells_done
from m3ae_scale.bench.sweep import Cell, Sweep
from m3ae_scale.errors import EXIT_MISTAKE, EXIT_STOPPED
from m3ae_scale.parallel.launch import launch_local

BENCH = "scaling"


def run_sweep(sweep: Sweep, cells: Sequence[Cell], results: Path, command: Sequence[str]) -> int:
    """Run `command` with --cell=N as the ranks of each cell that is open; return an exit code.

    A cell that fails is named and the others run, unless it was stopped or met a mistake of the user's: those end all.
    """
    done, code = done_cells(sweep, cells, results), 0
    for place, cell in enumerate(cells, start=1):
        print(f"cell {cell.number} ({place} of {len(cells)}): {cell.name}", end="", flush=True)
        if cell.name in done:
            print(", done before")
            continue
        print(f", {cell.devices} rank{'s' * (cell.devices > 1)}", flush=True)
        ended = launch_local(cell.devices, [*command, f"--cell={cell.number}"])
        if ended in (EXIT_MISTAKE, EXIT_STOPPED) or ended >= 128:
            return ended
        if ended:
            print(f"cell {cell.number} failed with exit code {ended}; the others go on", flush=True)
            code = 1
    return code


def done_cells(sweep: Sweep, cells: Sequence[Cell], results: Path) -> set[str]:
    """Return the names of the cells that have their row in `results`."""
    known = cells_done(results, BENCH)
    return {cell.name for cell in cells if cell_key(cell.identity(sweep.name)) in known}


def states(sweep: Sweep, cells: Sequence[Cell], results: Path) -> Iterator[str]:
    """Yield a line for each cell: number, devices, done or open, name; between tabs, for scripts to read."""
    done = done_cells(sweep, cells, results)
    for cell in cells:
        yield f"{cell.number}\t{cell.devices}\t{'done' if cell.name in done else 'open'}\t{cell.name}"


def open_cells(sweep: Sweep, cells: Sequence[Cell], results: Path) -> dict[int, list[int]]:
    """Return the numbers of the cells that are not done, by their devices."""
    done = done_cells(sweep, cells, results)
    found: dict[int, list[int]] = {}
    for cell in cells:
        if cell.name not in done:
            found.setdefault(cell.devices, []).append(cell.number)
    return found
