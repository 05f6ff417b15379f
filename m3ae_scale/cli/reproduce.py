"""m3ae-scale reproduce: the paper's claims as experiments."""

from pathlib import Path

import click


@click.command()
@click.argument("claim")
@click.option("--scale", default="minutes", show_default=True, help="minutes, cpu_hours, hour, paper, or a YAML file.")
@click.option("--folder", type=click.Path(file_okay=False), help="[default: runs/claims/SCALE]")
@click.option("--commands", is_flag=True, help="Print the command that pretrains each missing cell; run nothing.")
@click.option("--table", is_flag=True, help="Judge what is there; run nothing.")
def reproduce(claim: str, scale: str, folder: str | None, commands: bool, table: bool) -> None:
    """Run CLAIM, one cell after the other, and say what its intervals support.

    CLAIM: multimodal, text_mask, scaling, unpaired, ood, all, or a YAML file. A second call goes on where the first
    was stopped; claims share the cells that they have in common.
    """
    from m3ae_scale.evaluation.claims.files import claims, read_claim, read_scale

    asked = [read_claim(name) for name in (claims() if claim == "all" else [claim])]
    read = read_scale(scale)
    place = Path(folder or f"runs/claims/{read.scale}")
    from m3ae_scale.evaluation.claims import reproduce as room

    if commands:
        cells = {cell.key: cell for one in asked for cell in room.cells_of(one, read, place).values()}
        room.write_data(read, place, lambda line: click.echo(line, err=True))
        for cell in cells.values():
            if cell.figures() is None and not cell.pretrained():
                cell.write()
                click.echo(f"m3ae-scale slurm submit {cell.path} --nodes 8 --gpus-per-node 8")
        return
    for one in asked:
        page = room.write_claim(one, read, place) if table else room.reproduce(one, read, place, click.echo)
        for line in room.as_text(page.with_suffix(".json")):
            click.echo(line)
        click.echo(f"the page: {page}")
