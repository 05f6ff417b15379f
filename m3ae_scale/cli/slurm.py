"""m3ae-scale slurm: submit a run to a cluster; and what the batch script asks at each start."""

import os
from pathlib import Path

import click

from m3ae_scale.cli.options import experiment_argument, set_option
from m3ae_scale.errors import InputError


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
@click.option(
    "--chain", type=click.IntRange(1), default=1, help="Submit this many jobs, each after the last, without requeue."
)
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
    chain: int,
    script: str,
    dry_run: bool,
    sbatch_options: tuple[str, ...],
) -> None:
    """Show what EXPERIMENT amounts to on N nodes, let SLURM check the job, and submit it.

    What follows -- goes to sbatch as it is: -- --partition=gpu --account=me
    """
    from m3ae_scale.config import load_experiment
    from m3ae_scale.slurm import submit as sbatch
    from m3ae_scale.slurm.describe import describe
    from m3ae_scale.slurm.job import Request, parse_nodes, shapes_of

    if not dry_run:
        sbatch.require_sbatch()
    loaded, origins = load_experiment(experiment, list(overrides))
    if gpus_per_node and tasks_per_node not in (None, gpus_per_node):
        raise InputError(f"--tasks-per-node: found {tasks_per_node}, but a rank has one of {gpus_per_node} GPUs")
    request = Request(*parse_nodes(nodes), tasks_per_node or gpus_per_node or 1, gpus_per_node)
    shapes = shapes_of(loaded, origins, Path(experiment).parent, request, sbatch.count_words(loaded.data.tokenizer))
    options = [*([f"--time={time_limit}"] if time_limit else []), *sbatch_options]
    path = sbatch.find_script(script)
    job = sbatch.make_job(loaded, experiment, overrides, request, path, options, chained=chain > 1)
    click.echo(f"run         {sbatch.run_folder(loaded)}")
    for line in describe(shapes):
        click.echo(line)
    click.echo(f"job         {job}" + (f"   ({chain} times)" if chain > 1 else ""))
    if dry_run:
        return
    click.echo(f"SLURM says  it {sbatch.check(job)}")
    sbatch.run_folder(loaded).mkdir(parents=True, exist_ok=True)  # sbatch does not make the folder of --output
    numbers = [sbatch.submit(job) for _ in range(chain)]
    click.echo(f"submitted   {' '.join(numbers)}; output in {sbatch.run_folder(loaded)}/slurm-{numbers[0]}.out")


@slurm.command(context_settings={"ignore_unknown_options": True})
@click.argument("path", metavar="SWEEP", type=click.Path(dir_okay=False))
@click.option("--gpus-per-node", type=click.IntRange(0), required=True, help="One rank each; 0: run on CPUs.")
@click.option("--tasks-per-node", type=click.IntRange(1), default=1, help="Ranks on a node without GPUs.  [default: 1]")
@click.option("--dry-run", is_flag=True, help="Show what would be submitted.")
@click.argument("sbatch_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- SBATCH_OPTION...]")
def sweep(path: str, gpus_per_node: int, tasks_per_node: int, dry_run: bool, sbatch_options: tuple[str, ...]) -> None:
    """Submit the open cells of SWEEP, an array for each number of devices, and a job that writes the report after them.

    Submitted again it takes only what is not done. What follows -- goes to sbatch as it is: -- --partition=gpu
    """
    from m3ae_scale.bench.run import open_cells
    from m3ae_scale.bench.sweep import read_sweep
    from m3ae_scale.slurm import submit as sbatch
    from m3ae_scale.slurm.sweep import make_arrays, make_report

    if not dry_run:
        sbatch.require_sbatch()
    plan, cells = read_sweep(Path(path))
    folder = Path(plan.folder) / plan.name
    waiting = open_cells(plan, cells, folder / "results.jsonl")
    arrays = make_arrays(
        path, plan.name, folder, waiting, gpus_per_node or tasks_per_node, gpus_per_node > 0,
        sbatch.find_script("slurm/scaling_sweep.sbatch"), sbatch_options,
    )  # fmt: skip
    click.echo(f"cells       {sum(map(len, waiting.values()))} open of {len(cells)}")
    for array in arrays:
        click.echo(f"array       {array}")
    if dry_run or not arrays:
        return
    for array in arrays:
        click.echo(f"SLURM says  it {sbatch.check(array)}")
    folder.mkdir(parents=True, exist_ok=True)  # sbatch does not make the folder of --output
    numbers = [sbatch.submit(array) for array in arrays]
    report = make_report(plan.name, folder, sbatch.find_script("slurm/evaluate.sbatch"), numbers, sbatch_options)
    click.echo(f"report      {report}")
    numbers.append(sbatch.submit(report))
    click.echo(f"submitted   {' '.join(numbers)}; the report will be {folder}/report.html")


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
