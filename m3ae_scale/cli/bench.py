"""m3ae-scale bench: what is measured on this hardware, as JSON lines that `m3ae-scale report` makes a page of."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


_CELL_OPTIONS = {  # key of a cell -> its type and meaning
    "size": (str, "A named size, see `m3ae-scale sizes`."),
    "micro_batch": (int, "Samples per rank and forward pass."),
    "devices": (int, "Ranks on this machine."),
    "tensor_parallel": (int, "Ranks that split the model."),
    "sequence_parallel": (bool, "Tensor-parallel ranks split the tokens too."),
    "zero_stage": (int, "0 to 3."),
    "offload": (float, "Share of the optimizer on the host, 0 to 1; at ZeRO 3 all parameters go there too."),
    "pin_memory": (bool, "Pin the host memory of what is offloaded: faster, up to twice the bytes.  [default: yes]"),
    "precision": (str, "bf16 or fp32."),
    "recompute": (str, "none, full, selective or every_N."),
    "attention": (str, "A backend of kernels.attention."),
    "layer_norm": (str, "A backend of kernels.layer_norm."),
    "linear": (str, "A backend of kernels.linear: torch or fp8."),
    "text_loss": (str, "A backend of kernels.text_loss."),
    "compile": (str, "none or blocks."),
    "text": (bool, "Pairs of image and caption; false: images alone."),
    "steps": (int, "Timed steps of each repeat."),
    "repeats": (int, "Windows of so many steps; the median one counts."),
    "warmup": (int, "Steps before, untimed."),
}


def _cell_options(command: Callable[..., None]) -> Callable[..., None]:
    for key, (kind, text) in reversed(_CELL_OPTIONS.items()):
        option = click.option(f"--{key.replace('_', '-')}", key, type=kind, multiple=True, help=text)
        command = option(command)
    return command


@bench.command()
@click.argument("grid", type=click.Path(dir_okay=False, path_type=Path), required=False)
@_cell_options
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default="throughput.jsonl", show_default=True
)
def throughput(grid: Path | None, output: Path, **choices: tuple[Any, ...]) -> None:
    """Measure how fast training steps are: every combination of the options, each of which may be repeated.

    GRID, a YAML, may hold several such products: docs/speed.md. Each cell runs in processes of its own, and is a JSON
    line: samples and tokens a second, model FLOP/s over useful tokens, MFU, peak memory. One that runs out of memory
    is a line too, and cells that have theirs are not measured again.
    """
    from m3ae_scale.bench.cells import run_cells, table
    from m3ae_scale.bench.grid import product, read_grid
    from m3ae_scale.errors import InputError

    given = {key: list(values) for key, values in choices.items() if values}
    if grid is not None and given:
        raise InputError(f"{grid}: give a grid or --{next(iter(given)).replace('_', '-')}, not both")
    cells = read_grid(grid) if grid is not None else product(given, "the options")
    code = run_cells(cells, output)
    for line in table(cells, output):
        click.echo(line)
    if code:
        raise click.exceptions.Exit(code)
