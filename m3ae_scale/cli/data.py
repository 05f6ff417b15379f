"""m3ae-scale data: make, index and look at tar shards."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from m3ae_scale.cli.options import experiment_argument, set_option

if TYPE_CHECKING:
    from collections.abc import Callable


@click.group()
def data() -> None:
    """Make, index and look at tar shards."""


@data.command()
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--samples", type=click.IntRange(0), default=4000, show_default=True, help="Image-text pairs.")
@click.option("--image-only", type=click.IntRange(0), default=0, show_default=True, help="Images without a caption.")
@click.option("--text-only", type=click.IntRange(0), default=0, show_default=True, help="Texts without an image.")
@click.option("--validation", type=click.IntRange(0), default=0, show_default=True, help="Held out beside these.")
@click.option("--seed", default=0, show_default=True, help="The same seed writes the same bytes.")
@click.option(
    "--image-size", type=int, nargs=2, default=(64, 96), show_default=True, help="Shortest and longest side, pixels."
)
@click.option("--samples-per-shard", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--vocabulary", type=int, default=2048, show_default=True, help="Word pieces to learn, at most.")
@click.option("--processes", type=click.IntRange(1), help="Writers.  [default: one per core]")
def synthesize(
    folder: str,
    samples: int,
    image_only: int,
    text_only: int,
    validation: int,
    seed: int,
    image_size: tuple[int, int],
    samples_per_shard: int,
    vocabulary: int,
    processes: int | None,
) -> None:
    """Write shards of invented scenes with truthful captions, and a vocabulary, into FOLDER."""
    from m3ae_scale.data.synthesize import Synthesis, synthesize

    settings = Synthesis(
        samples, image_only, text_only, validation, seed, image_size, samples_per_shard, vocabulary
    )  # fmt: skip
    with _bar("synthesize", settings.total) as advance:
        synthesize(folder, settings, processes, advance)
    click.echo(f"{settings.total} samples in {folder}, its vocabulary in {folder}/vocab.txt")


@data.command()
@experiment_argument
@set_option
def index(experiment: str, overrides: tuple[str, ...]) -> None:
    """Index the shards of EXPERIMENT's sources, as training would on its start."""
    from m3ae_scale.config import load_experiment
    from m3ae_scale.data.index import index_source

    loaded, _ = load_experiment(experiment, list(overrides))
    for source in (*loaded.data.sources, *loaded.data.validation):
        indexed = index_source(source, loaded.data, progress=True)
        click.echo(
            f"{source.name}: {int(indexed.counts.sum())} samples in {len(indexed.locations)} shards, "
            f"{indexed.total('images')} with an image, {indexed.total('texts')} with a text"
        )


@contextmanager
def _bar(title: str, total: int) -> "Iterator[Callable[[int], object]]":
    """Show a progress bar on stderr; yields the function that advances it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)
