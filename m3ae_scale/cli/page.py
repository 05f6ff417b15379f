"""m3ae-scale page: one HTML file that shows a run."""

import click


@click.command()
@click.argument("run_folder", type=click.Path(file_okay=False))
def page(run_folder: str) -> None:
    """Write RUN_FOLDER/run.html: curves, reconstructions, where everything is and what to try next."""
    from pathlib import Path

    from m3ae_scale.errors import InputError
    from m3ae_scale.reports.run_page import write_run_page

    if not (Path(run_folder) / "experiment.yaml").is_file():
        raise InputError(f"{run_folder}: no experiment.yaml there; give the folder of a run, as `pretrain` prints it")
    click.echo(write_run_page(run_folder))
