"""m3ae-scale data: make, convert, index, look at and verify tar shards."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from m3ae_scale.cli.options import experiment_argument, set_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from m3ae_scale.config.schema import DataConfig, Experiment
    from m3ae_scale.data.sample import Kind


paths_argument = click.argument("paths", nargs=-1, required=True, metavar="PATHS...")

kind_option = click.option(
    "--kind",
    type=click.Choice(["paired", "image", "text"]),
    help="What each sample is to hold.  [default: what most do]",
)


@click.group()
def data() -> None:
    """Make, convert, index, look at and verify tar shards."""


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
@click.option(
    "--label", default="", help="Write cls members: family (named in no caption), shape, colour, texture, ..."
)
@click.option("--shapes", default="", metavar="A,B,...", help="Draw these only.  [default: all]")
@click.option("--backgrounds", default="", metavar="A,B,...", help="Draw these only.  [default: all]")
@click.option("--one-large", is_flag=True, help="Draw scenes of one large thing only, for tiny images.")
@click.option("--vague", type=float, default=0.0, help="Share of captions that name neither shape nor colour.")
@click.option("--shuffled-captions", is_flag=True, help="Give each image the caption of another, as a control.")
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
    label: str,
    shapes: str,
    backgrounds: str,
    one_large: bool,
    vague: float,
    shuffled_captions: bool,
    processes: int | None,
) -> None:
    """Write shards of invented scenes with truthful captions, and a vocabulary, into FOLDER."""
    from m3ae_scale.data.synthesize import Synthesis, synthesize

    settings = Synthesis(
        samples, image_only, text_only, validation, seed, image_size, samples_per_shard, vocabulary,
        label, _listed(shapes), _listed(backgrounds), one_large, vague, shuffled_captions,
    )  # fmt: skip
    with _bar("synthesize", settings.total) as advance:
        synthesize(folder, settings, processes, advance)
    click.echo(f"{settings.total} samples in {folder}, its vocabulary in {folder}/vocab.txt")


def _listed(names: str) -> tuple[str, ...]:
    return tuple(name for name in names.split(",") if name)


@data.command()
@click.argument("source", type=click.Path())
@click.argument("folder", type=click.Path(file_okay=False))
@click.option("--images", type=click.Path(), help="Folder that image paths begin at.  [default: the table's]")
@click.option("--image-column", help="Column that names image files.  [default: the first with a usual name]")
@click.option("--caption-column", help="Column of the captions.  [default: the first with a usual name]")
@click.option("--split", help="Of an HDF5 file with train_jpg and val_jpg: train or val.")
@kind_option
@click.option("--samples-per-shard", type=click.IntRange(1, 10_000), default=1000, show_default=True)
@click.option("--vocabulary", type=click.IntRange(100), help="Word pieces to learn from the captions, at most.")
@click.option(
    "--missing-limit", type=click.FloatRange(0, 1), default=0.01, show_default=True,
    help="Share of rows that may be left out, as their image is missing.",
)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), default=8, show_default=True, help="Readers and writers.")
def convert(
    source: str,
    folder: str,
    images: str | None,
    image_column: str | None,
    caption_column: str | None,
    split: str | None,
    kind: "Kind | None",
    samples_per_shard: int,
    vocabulary: int | None,
    missing_limit: float,
    threads: int,
) -> None:
    """Write SOURCE as tar shards into FOLDER; run again, it goes on where it was.

    SOURCE is a table of image files and captions (csv, tsv, jsonl, parquet), a folder that holds one, an HDF5 file of
    m3ae_public, or a folder with one folder of images a class.
    """
    from m3ae_scale.data.convert import convert, open_rows

    rows = open_rows(
        source, kind=kind, images=images, image_column=image_column, caption_column=caption_column, split=split
    )
    with _bar("convert", len(rows)) as advance:
        done = convert(rows, folder, samples_per_shard, missing_limit, vocabulary, threads, advance)
    click.echo(f"{done.samples} samples of kind {rows.kind} in {done.shards} shards in {folder}")
    if done.left_out:
        first = done.left_out[0]
        click.echo(
            f"{len(done.left_out)} rows left out, listed in {folder}/left_out.jsonl; the first is row {first.row}: "
            f"{first.image or 'no image'}: {first.reason}"
        )
    if done.vocabulary:
        click.echo(f"{done.vocabulary} word pieces in {folder}/vocab.txt")


@data.command()
@paths_argument
@set_option
@kind_option
@click.option("--vocabulary", type=click.Path(dir_okay=False), help="A vocab.txt, to count word pieces.")
@click.option("--image-size", type=click.IntRange(1), help="Pixels, square.  [default: 256, or the experiment's]")
@click.option("--patch", type=click.IntRange(1), help="Pixels, square.  [default: 16, or the experiment's]")
@click.option("--text-length", type=click.IntRange(1), help="Of a caption.  [default: 64, or the experiment's]")
@click.option("--unpaired-text-length", type=click.IntRange(1), help="[default: 256, or the experiment's]")
@click.option("--limit", type=click.IntRange(1), default=4000, show_default=True, help="Samples to look at.")
@click.option("--page", type=click.Path(dir_okay=False), default="inspect.html", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def inspect(
    paths: tuple[str, ...],
    overrides: tuple[str, ...],
    kind: "Kind | None",
    vocabulary: str | None,
    limit: int,
    page: str,
    as_json: bool,
    **lengths: int | None,
) -> None:
    """Tell what is in shards, and write a page of pictures with captions and histograms.

    PATHS are shards (folders, globs, {00000..00099}.tar, URLs) or one experiment, a YAML file. Samples are counted
    exactly; the rest is measured on a number of samples that are spread evenly over all shards.
    """
    from m3ae_scale.data import inspect as room
    from m3ae_scale.data.tokenizer import load_tokenizer

    section, experiment = _section(paths, overrides, kind, vocabulary)
    given = {name: value for name, value in lengths.items() if value is not None}
    if experiment:
        model = experiment.model
        of_model = (model.image_size, model.patch, model.text_length, model.unpaired_text_length)
        lengths_used = replace(room.Lengths(*of_model), **given)
    else:
        lengths_used = room.Lengths(**given)
    words_from = vocabulary or (experiment and experiment.data.tokenizer)
    tokenizer = load_tokenizer(words_from) if words_from else None
    with _bar("inspect", None) as advance:
        found = room.inspect(
            section, lengths_used, tokenizer, limit, by_weight=experiment is not None, progress=advance
        )
    paste = room.as_section(found, None if experiment else section)
    room.write_page(found, page, paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more", paste)
    if as_json:
        click.echo(json.dumps(room.as_json(found), indent=2))
        return
    for line in room.as_text(found):
        click.echo(line)
    click.echo(f"\nto paste into the experiment:\n\n{paste}\nthe page with pictures: {page}")


@data.command()
@paths_argument
@set_option
@kind_option
@click.option(
    "--record", type=click.Path(dir_okay=False), default="verify.jsonl", show_default=True,
    help="Every shard with its bad samples; what stands there and has not changed is not read again.",
)  # fmt: skip
@click.option(
    "--limit",
    type=click.FloatRange(0, 1),
    help="Share of a source that may be bad.  [default: 0.01, or the experiment's]",
)
@click.option("--processes", type=click.IntRange(1), help="Readers.  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def verify(
    paths: tuple[str, ...],
    overrides: tuple[str, ...],
    kind: "Kind | None",
    record: str,
    limit: float | None,
    processes: int | None,
    as_json: bool,
) -> None:
    """Read every shard and decode every sample, as training would; run again, it goes on where it was.

    PATHS are shards (folders, globs, {00000..00099}.tar, URLs) or one experiment, a YAML file. The exit code is 1 when
    a source has more bad samples than the limit, when a shard cannot be read or is damaged, or when a saved index
    contradicts its shard; else 0.
    """
    from m3ae_scale.data.verify import as_json as told
    from m3ae_scale.data.verify import as_text, count_shards, verify

    section, _ = _section(paths, overrides, kind, None)
    with _bar("verify", count_shards(section)) as advance:
        found = verify(section, record, limit, processes, advance)
    if as_json:
        click.echo(json.dumps(told(found), indent=2))
    else:
        for line in as_text(found, record):
            click.echo(line)
    raise click.exceptions.Exit(1 if found.failures() else 0)


def _section(
    paths: tuple[str, ...], overrides: tuple[str, ...], kind: "Kind | None", tokenizer: str | None
) -> "tuple[DataConfig, Experiment | None]":
    """Read the data section that PATHS mean: an experiment's, or one made for shards."""
    from m3ae_scale.config import load_experiment
    from m3ae_scale.data.section import data_section

    if not any(path.endswith((".yaml", ".yml")) for path in paths):
        if overrides:
            raise click.UsageError("--set changes an experiment, but PATHS are shards; leave it out")
        return data_section(paths, kind, tokenizer or "vocab.txt"), None
    if len(paths) > 1:
        raise click.UsageError("an experiment stands alone: give one YAML file, or shards")
    if kind:
        raise click.UsageError("--kind is for shards; an experiment says the kind of each source")
    experiment, _ = load_experiment(paths[0], list(overrides))
    return experiment.data, experiment


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
def _bar(title: str, total: int | None) -> "Iterator[Callable[..., object]]":
    """Show a progress bar on stderr; yields the function that advances it.

    total: None: the function is told it, as its second argument.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(title, total=total)

    def advance(count: int, known: int | None = total) -> None:
        progress.start()  # only now: shards may be listed first, with a bar of their own
        progress.update(task, advance=count, total=known)

    try:
        yield advance
    finally:
        progress.stop()
