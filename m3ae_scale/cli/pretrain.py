"""m3ae-scale pretrain: one training run, on this process, on N of this machine, or as a rank of a launcher."""

import json
import os
from pathlib import Path

import click

from m3ae_scale.cli.options import experiment_argument, on_ranks, set_option


@click.command()
@experiment_argument
@click.option("--nproc", type=click.IntRange(1), help="Processes to start on this machine.  [default: 1]")
@set_option
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of this experiment's run folder.")
@click.option(
    "--init-from",
    metavar="PATH",
    help="Begin with the weights of a run, a checkpoint, an exported file, a model.pkl or a MAE .pth: train.init_from.",
)
def pretrain(
    experiment: str, nproc: int | None, overrides: tuple[str, ...], resume: bool, init_from: str | None
) -> None:
    """Train the model that EXPERIMENT, a YAML file, describes.

    Under torchrun, the deepspeed launcher, srun or mpirun the same command is one rank of their job. SIGUSR1, SIGTERM
    and Ctrl-C make it stop after the next steps with a checkpoint and exit code 75; --resume goes on.
    """
    from m3ae_scale.config import load_experiment
    from m3ae_scale.engine.deepspeed_config import resolve
    from m3ae_scale.parallel.launch import is_launched
    from m3ae_scale.parallel.topology import Topology
    from m3ae_scale.training.signals import held_signals

    if init_from is not None:
        overrides += (f"train.init_from={json.dumps(init_from)}",)
    loaded, origins = load_experiment(experiment, list(overrides))
    if nproc is not None and nproc > 1 and not is_launched(os.environ):
        topology = Topology(nproc, loaded.parallel.tensor)
        if loaded.batch.micro_tokens is None:  # else the data must be opened first
            resolve(loaded, origins, topology, Path(experiment).parent)  # a mistake shows before torch is loaded
    on_ranks(nproc)
    with held_signals():  # before torch starts its threads
        from m3ae_scale.training.pretrain import pretrain as run

        folder = run(loaded, origins, Path(experiment), resume=resume)
    if folder is not None:  # on the first rank, at the end of training
        from m3ae_scale.reports.run_page import write_run_page

        click.echo(f"finished. Curves, pictures and what to try next: {write_run_page(folder)}")
