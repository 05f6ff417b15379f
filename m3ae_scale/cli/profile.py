"""m3ae-scale profile: where the time of a training step goes."""

import os
import sys
from pathlib import Path

import click

from m3ae_scale.cli.options import experiment_argument, set_option


@click.command()
@experiment_argument
@click.option("--nproc", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--steps", type=click.IntRange(1), default=3, show_default=True, help="Profiled steps.")
@click.option("--output", default="profile", show_default=True, help="Folder for the traces.")
@set_option
def profile(experiment: str, nproc: int, steps: int, output: str, overrides: tuple[str, ...]) -> None:
    """Profile a few steps of EXPERIMENT on invented batches: a trace, and the time by room of the model."""
    from m3ae_scale.config import load_experiment
    from m3ae_scale.parallel.launch import is_launched, launch_local

    loaded, origins = load_experiment(experiment, list(overrides))
    if nproc > 1 and not is_launched(os.environ):
        again = [sys.executable, "-m", "m3ae_scale.cli.main", "profile", experiment, f"--steps={steps}"]
        again += [f"--output={output}", *(f"--set={override}" for override in overrides)]
        raise click.exceptions.Exit(launch_local(nproc, again))
    from m3ae_scale.bench.profile import profile_steps

    for line in profile_steps(loaded, origins, Path(experiment), Path(output), steps):
        click.echo(line)
