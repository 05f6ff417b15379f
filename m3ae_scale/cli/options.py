"""Arguments that several verbs share."""

import click

experiment_argument = click.argument("experiment", type=click.Path(dir_okay=False))

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace one value of the experiment, as in --set batch.global=256. May be repeated.",
)
