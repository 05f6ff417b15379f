"""m3ae-scale bench: what is measured on this hardware, as JSON lines that `m3ae-scale report` makes a page of."""

import os
import sys
from pathlib import Path

import click


@click.group()
def bench() -> None:
    """Measure on this hardware; `m3ae-scale report` makes a page of the results."""


@bench.command()
@click.argument("sweep", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--cell", type=int, envvar="SLURM_ARRAY_TASK_ID", help="Run this cell alone.  [default: all, in order]")
@click.option("--list", "listing", is_flag=True, help="Show the cells: number, devices, done or open, name.")
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), help="[default: results.jsonl in the sweep's folder]"
)
def scaling(sweep: Path, cell: int | None, listing: bool, output: Path | None) -> None:
    """Train every cell of SWEEP, a YAML of model sizes x samples seen x devices: docs/scaling.md.

    Cells that have their row of results are not run again, and one that was interrupted goes on. Under srun or
    torchrun the command is one rank of the cell that --cell or SLURM_ARRAY_TASK_ID names.
    """
    from m3ae_scale.bench.sweep import choose, read_sweep
    from m3ae_scale.errors import InputError
    from m3ae_scale.parallel.launch import find_ranks, is_launched
    from m3ae_scale.training.signals import held_signals

    plan, cells = read_sweep(sweep)
    output = output or Path(plan.folder) / plan.name / "results.jsonl"
    if is_launched(os.environ) and not listing:
        if cell is None:
            raise InputError("--cell: a launcher started this process; name the cell that its ranks are to run")
        (only,) = choose(cells, cell, sweep)
        world = find_ranks(os.environ).world
        if world != only.devices:
            raise InputError(f"--cell {cell}: wants {only.devices} ranks, but the launcher started {world}")
        with held_signals():  # before torch starts its threads
            from m3ae_scale.bench.scaling import run_cell

            run_cell(plan, only, output)
        return

    from m3ae_scale.bench.run import run_sweep, states

    if listing:
        for line in states(plan, cells, output):
            click.echo(line)
        return
    again = [sys.executable, "-m", "m3ae_scale.cli.main", "bench", "scaling", str(sweep), f"--output={output}"]
    code = run_sweep(plan, choose(cells, cell, sweep), output, again)
    if code:
        raise click.exceptions.Exit(code)
    click.echo(f"results in {output}; as a page: m3ae-scale report {output}")
