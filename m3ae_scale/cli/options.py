"""Arguments that several verbs share."""

import os
import sys

import click

from m3ae_scale.errors import InputError

experiment_argument = click.argument("experiment", type=click.Path(dir_okay=False))

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace one value of the experiment, as in --set batch.global=256. May be repeated.",
)


def on_ranks(nproc: int | None) -> None:
    """Run the present command as `nproc` ranks of this machine and exit; return at once in a rank, or for one.

    Raises InputError where a launcher has started another number.
    """
    from m3ae_scale.parallel.launch import find_ranks, is_launched, launch_local

    if is_launched(os.environ):
        world = find_ranks(os.environ).world
        if nproc not in (None, world):
            raise InputError(f"--nproc: found {nproc}, but the launcher started {world} ranks; leave --nproc out")
    elif nproc is not None and nproc > 1:
        context = click.get_current_context()
        verbs = context.command_path.split()[1:]
        again = [sys.executable, "-m", "m3ae_scale.cli.main", *verbs, *_words(context)]
        raise click.exceptions.Exit(launch_local(nproc, again))


def _words(context: click.Context) -> list[str]:
    """The words that give the command of `context` the parameters that it has, less --nproc."""
    options, arguments = [], []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        many = value if isinstance(value, tuple) else () if value is None else (value,)
        if isinstance(parameter, click.Argument):
            arguments += [str(one) for one in many]
        elif isinstance(parameter, click.Option) and parameter.name != "nproc":
            flag = parameter.opts[0]
            options += ([flag] if value else []) if parameter.is_flag else [f"{flag}={one}" for one in many]
    return [*options, *arguments]
