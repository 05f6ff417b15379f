"""m3ae-scale slurm: submit a run to a cluster; and what the batch script asks at each start."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m3ae_scale.cli.options import experiment_argument, set_option
from m3ae_scale.errors import InputError

if TYPE_CHECKING:
    from m3ae_scale.slurm.job import Shape


@click.group()
def slurm() -> None:
    """Run on a SLURM cluster: docs/your-cluster.md."""


@slurm.command(context_settings={"ignore_unknown_options": True})
@experiment_argument
@click.option("--nodes", required=True, metavar="N|MIN-MAX", help="With MIN-MAX the run takes what it gets.")
@click.option("--gpus-per-node", type=click.IntRange(0), required=True, help="One rank each; 0: run on CPUs.")
@click.option("--tasks-per-node", type=click.IntRange(1), help="Ranks on a node.  [default: one per GPU, or 1]")
@set_option
@click.option("--time", "time_limit", metavar="LIMIT", help="Of one job, as in 24:00:00.  [default: the script's]")
@click.option("--chain", type=click.IntRange(2), help="Submit this many jobs, each after the last, without requeue.")
@click.option("--script", default="slurm/pretrain.sbatch", show_default=True, help="The batch script.")
@click.option("--dry-run", is_flag=True, help="Show what would be submitted.")
@click.argument("sbatch_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SBATCH_OPTION...]")
def submit(
    experiment: str,
    nodes: str,
    gpus_per_node: int,
    tasks_per_node: int | None,
    overrides: tuple[str, ...],
    time_limit: str | None,
    chain: int | None,
    script: str,
    dry_run: bool,
    sbatch_options: tuple[str, ...],
) -> None:
    """Show what EXPERIMENT amounts to on N nodes, let SLURM check the job, and submit it.

    What follows -- goes to sbatch as it is: -- --partition=gpu --account=me
    """
    from m3ae_scale.config import load_experiment
    from m3ae_scale.slurm.job import Request, parse_nodes, shapes_of
    from m3ae_scale.slurm.job import sbatch_options as options_of
    from m3ae_scale.slurm.submit import check, count_words, find_script, require_sbatch
    from m3ae_scale.slurm.submit import submit as hand_in

    if not dry_run:
        require_sbatch()
    loaded, origins = load_experiment(experiment, list(overrides))
    request = Request(*parse_nodes(nodes), tasks_per_node or gpus_per_node or 1, gpus_per_node)
    if gpus_per_node and request.tasks_per_node != gpus_per_node:
        raise InputError(
            f"--tasks-per-node: found {tasks_per_node}, expected {gpus_per_node}: one rank per GPU; leave it out"
        )
    vocabulary = count_words(loaded.data.tokenizer)
    shapes = shapes_of(loaded, origins, Path(experiment).parent, request, vocabulary)
    run_folder = Path(loaded.run.folder) / loaded.name
    command = ["sbatch", *options_of(loaded, request, run_folder)]
    command += [f"--time={time_limit}"] if time_limit else []
    command += ["--no-requeue", "--dependency=singleton"] if chain else []
    path = find_script(script)
    command += [*sbatch_options, str(path), experiment, *(f"--set={o}" for o in overrides)]

    click.echo(f"run         {run_folder}")
    for line in _describe(shapes):
        click.echo(line)
    click.echo(f"job         {shlex.join(command)}")
    if dry_run:
        return
    click.echo(f"SLURM says  {check(command)}")
    run_folder.mkdir(parents=True, exist_ok=True)  # sbatch wants the folder of --output to be there
    name = f"{loaded.name}-{os.urandom(4).hex()}" if chain else None
    jobs = [hand_in(command, path, name) for _ in range(chain or 1)]
    click.echo(f"submitted   {' '.join(jobs)}; its output: {run_folder}/slurm-{jobs[0]}.out")


@slurm.command()
@experiment_argument
@set_option
@click.option("--nodes", type=click.IntRange(1), required=True, help="Nodes that the job was given.")
@click.option("--tasks-per-node", type=click.IntRange(1), required=True, help="Ranks on a node.")
@click.option("--limit", type=click.IntRange(1), default=3, show_default=True, help="Starts in vain before giving up.")
@click.option("--resume", is_flag=True, hidden=True)  # so that the words of `pretrain` can be passed as they are
def begin(
    experiment: str, overrides: tuple[str, ...], nodes: int, tasks_per_node: int, limit: int, resume: bool
) -> None:
    """Note one start of a job, and print on how many of its nodes to run. For slurm/pretrain.sbatch.

    Fails when the last starts of the job have gained nothing, or when the global batch divides on no number of nodes.
    """
    from m3ae_scale.config import load_experiment
    from m3ae_scale.slurm.job import usable_nodes
    from m3ae_scale.slurm.starts import note_start

    loaded, origins = load_experiment(experiment, list(overrides))
    usable = usable_nodes(loaded, origins, Path(experiment).parent, nodes, tasks_per_node)
    checkpoint = note_start(Path(loaded.run.folder) / loaded.name, os.environ, usable, limit)
    if usable < nodes:
        click.echo(f"batch.global {loaded.batch.global_} does not divide on {nodes} nodes: {usable} run", err=True)
    click.echo(f"from {checkpoint or 'the beginning'}, on {usable} nodes of {tasks_per_node} ranks", err=True)
    click.echo(usable)


def _describe(shapes: "dict[int, Shape]") -> list[str]:
    """Tell each shape that the run may take, in a line, and for how many granted nodes it does."""
    lines = []
    for used in sorted({shape.nodes for shape in shapes.values()}):
        granted = [nodes for nodes, shape in shapes.items() if shape.nodes == used]
        shape = shapes[granted[0]]
        topology, plan, states = shape.topology, shape.resolved.plan, shape.states
        idle = f" (of {granted[-1]}: batch.global divides on no more)" if granted[-1] > used else ""
        micro = f"about {plan.micro_batch}" if plan.micro_tokens else str(plan.micro_batch)
        host = f", {_bytes(states.host)} on the host" if states.host else ""
        stage = shape.resolved.config["zero_optimization"]["stage"]
        lines += [
            f"on {used} node{'s' * (used > 1)}{idle}",
            f"  topology  {topology.world} ranks = tensor {topology.tensor} x data {topology.data}, "
            f"ZeRO {stage}, {shape.resolved.precision}",
            f"  batch     {plan.global_batch} = micro {micro} x data {plan.data} x accumulation {plan.accumulation}",
            f"  memory    {_bytes(states.device)} per rank, projected{host}: parameters "
            f"{_bytes(states.parameters)}, gradients {_bytes(states.gradients)}, optimizer "
            f"{_bytes(states.optimizer)}; activations come on top",
        ]
    return lines


def _bytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
