"""m3ae-scale checkpoint: what the checkpoints of a run hold, whether they are whole, and weights out of them."""

import json
from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.group()
def checkpoint() -> None:
    """List, verify, compare and export the checkpoints of a run.

    PATH is a run folder (its newest good checkpoint is meant) or the folder of one checkpoint.
    """


@checkpoint.command()
@click.argument("run_folder", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def ls(run_folder: Path, as_json: bool) -> None:
    """List the checkpoints of RUN_FOLDER, the newest first. Hashes are not looked at: see verify."""
    from m3ae_scale.engine.checkpoint.folder import list_checkpoints
    from m3ae_scale.errors import InputError

    listed = list_checkpoints(run_folder)
    if not listed:
        raise InputError(f"{run_folder}: no checkpoint there; give the folder of a run, as `pretrain` prints it")
    rows = [
        {"checkpoint": str(path), "step": None, "error": "manifest damaged or missing"}
        if manifest is None
        else {
            "checkpoint": str(path),
            "step": manifest.step,
            "saved": manifest.saved,
            "bytes": manifest.bytes,
            "parameters": manifest.parameters,
            "written_by": manifest.written_by,
        }
        for path, manifest in listed
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'step':>9}  {'saved (UTC)':19}  {'size':>9}  written by")
    for row, (path, manifest) in zip(rows, listed, strict=True):
        if manifest is None:
            click.echo(f"{'?':>9}  {row['error']}: {path.name}")
            continue
        by = manifest.written_by
        how = f"tensor {by['tensor']} x data {by['data']}, ZeRO {by['zero_stage']}, {by['precision']}"
        size = f"{manifest.bytes / 2**20:,.1f} MB"
        click.echo(f"{manifest.step:>9}  {manifest.saved[:19]:19}  {size:>9}  {how}  {path.name}")


@checkpoint.command()
@click.argument("path", type=_PATH)
def verify(path: Path) -> None:
    """Hash every file of the checkpoint PATH, or of all checkpoints of the run PATH; exit code 1 where one is bad."""
    from m3ae_scale.engine.checkpoint.folder import list_checkpoints
    from m3ae_scale.engine.checkpoint.format import MANIFEST, Damaged, find_damage, read_manifest
    from m3ae_scale.errors import InputError

    folders = [path] if (path / MANIFEST).is_file() else [folder for folder, _ in list_checkpoints(path)]
    if not folders:
        raise InputError(f"{path}: no checkpoint there; give the folder of a run or of a checkpoint")
    bad = 0
    for folder in folders:
        try:
            manifest = read_manifest(folder)
            damage = find_damage(folder, manifest)
        except InputError as problem:
            damage = [problem.what if isinstance(problem, Damaged) else str(problem)]
        for line in damage:
            click.echo(f"damaged  {line}")
        if not damage:
            click.echo(f"good     {folder}  ({len(manifest.files)} files, {manifest.bytes / 2**20:,.1f} MB)")
        bad += bool(damage)
    if bad:
        raise click.exceptions.Exit(1)


@checkpoint.command()
@click.argument("one", type=_PATH)
@click.argument("other", type=_PATH)
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="Tensors to show.")
def diff(one: Path, other: Path, limit: int) -> None:
    """Show what differs between two checkpoints: settings, progress, and the tensors that are furthest apart."""
    from m3ae_scale.engine.checkpoint.compare import compare
    from m3ae_scale.engine.checkpoint.folder import find_checkpoint

    result = compare(find_checkpoint(one), find_checkpoint(other))
    for key, (a, b) in result.facts.items():
        click.echo(f"{key}: {a} | {b}")
    click.echo(f"{result.equal} tensors are equal, {len(result.tensors)} differ")
    if result.tensors:
        click.echo(f"{'relative':>9}  {'largest':>9}  tensor (relative: norm of the difference / norm)")
    for tensor in result.tensors[:limit]:
        click.echo(f"{tensor.relative:9.2e}  {tensor.largest:9.2e}  {tensor.kind} {tensor.name}")
    if len(result.tensors) > limit:
        click.echo(f"... and {len(result.tensors) - limit} more: --limit shows them")


@checkpoint.command()
@click.argument("path", type=_PATH)
@click.argument("output", type=_PATH)
@click.option("--part", type=click.Choice(["model", "encoder"]), default="model", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True)
def export(path: Path, output: Path, part: str, precision: str) -> None:
    """Write the weights of the checkpoint PATH as one safetensors file OUTPUT, without the optimizer's state."""
    from m3ae_scale.engine.checkpoint.export import export_weights
    from m3ae_scale.engine.checkpoint.folder import find_checkpoint

    found = find_checkpoint(path)
    size = export_weights(found, output, part, precision)
    click.echo(f"{output}: {part} of {found}, {precision}, {size / 2**20:,.1f} MB")
