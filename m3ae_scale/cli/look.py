"""m3ae-scale eval reconstruct, retrieve, attention: what a trained model does with pairs it is shown."""

from collections.abc import Callable
from typing import Any

import click

from m3ae_scale.cli.probe import say_outcome


def pairs_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every look is told: the run, and the pairs."""
    for add in (
        click.option("--device", default="cpu", show_default=True),
        click.option("--limit", type=click.IntRange(2), default=256, show_default=True, help="Pairs to take."),
        click.option("--shards", metavar="PATH", help="Tar shards of pairs.  [default: the run's validation pairs]"),
        click.argument("run", type=click.Path(file_okay=False)),
    ):
        command = add(command)
    return command


@click.command()
@pairs_options
@click.option(
    "--ratio",
    "ratios",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    default=(0.25, 0.5, 0.75, 0.9),
    show_default=True,
    help="Share that is hidden. May be repeated.",
)
@click.option("--show", "shown", type=click.IntRange(1), default=6, show_default=True, help="Pairs to draw.")
def reconstruct(run: str, shards: str | None, limit: int, device: str, ratios: tuple[float, ...], shown: int) -> None:
    """Let RUN (a run folder or a checkpoint) fill in what is hidden of pairs: patches, and words with and without
    their image.
    """  # noqa: D205
    from m3ae_scale.evaluation.reconstruct import reconstruct as run_it

    say_outcome(run_it(run, shards, limit, sorted(ratios), shown, device))


@click.command()
@pairs_options
@click.option("--pool", type=click.Choice(["cls", "mean"]), default="mean", show_default=True)
def retrieve(run: str, shards: str | None, limit: int, device: str, pool: str) -> None:
    """Find captions by images and images by captions with the features of RUN: recall at 1, 5, 10, beside chance."""
    from m3ae_scale.evaluation.retrieve import retrieve as run_it

    say_outcome(run_it(run, shards, limit, pool, device))


@click.command()
@pairs_options
@click.option("--show", "shown", type=click.IntRange(1), default=6, show_default=True, help="Pairs to draw.")
@click.option("--layer", type=click.IntRange(1), help="To draw.  [default: in which words look at patches most]")
def attention(run: str, shards: str | None, limit: int, device: str, shown: int, layer: int | None) -> None:
    """Show where in the image each word of a caption looks, in the encoder of RUN."""
    from m3ae_scale.evaluation.attention import attention as run_it

    say_outcome(run_it(run, shards, limit, shown, layer, device))
