"""m3ae-scale eval linear-probe, knn, ood, embed: probes of a checkpoint's frozen features."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from m3ae_scale.cli.options import on_ranks

if TYPE_CHECKING:
    from m3ae_scale.evaluation.probes import Probe

TAKEN = ("image", "text", "both")


def probe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every probe is told (the run, its training set, which features are taken), as the argument `start`.

    start: starts the ranks that were asked for, and returns the Probe.
    """

    @functools.wraps(command)
    def told(run: str, train: str, taken: Any, pool: Any, label: str | None, nproc: int | None, **others: Any) -> Any:
        def start() -> "Probe":
            on_ranks(nproc)
            from m3ae_scale.evaluation.probes import Probe

            return Probe(run, train, taken, pool, label)

        return command(start, **others)

    for add in (
        click.option("--nproc", type=click.IntRange(1), help="Processes on this machine.  [default: 1]"),
        click.option("--label", metavar="KEY", help="cls, or a key of the json member.  [default: cls, else label]"),
        click.option("--pool", type=click.Choice(["cls", "mean"]), default="cls", show_default=True),
        click.option("--input", "taken", type=click.Choice(TAKEN), default="image", show_default=True),
        click.option("--train", required=True, metavar="DATA", help="Labelled set: class folders, or tar shards."),
        click.argument("run", type=click.Path(file_okay=False)),
    ):
        told = add(told)
    return told


test_option = click.option("--test", required=True, metavar="DATA", help="Labelled set with the same classes.")


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add how a linear head is trained."""
    for add in (
        click.option("--seed", default=0, show_default=True),
        click.option("--epochs", type=click.IntRange(1), default=90, show_default=True),
        click.option("--batch", type=click.IntRange(2), help="Samples a step.  [default: 256; LARS 16384]"),
        click.option("--lr", type=float, default=0.1, show_default=True, help="Peak rate per 256 samples."),
        click.option("--optimizer", type=click.Choice(["sgd", "lars"]), default="sgd", show_default=True),
    ):
        command = add(command)
    return command


@click.command("linear-probe")
@probe_options
@test_option
@recipe_options
def linear_probe(
    start: Callable[[], "Probe"],
    test: str,
    **recipe: Any,
) -> None:
    """Train a linear layer on the frozen features of RUN (a run folder or a checkpoint), and score it.

    BatchNorm without affine, a linear layer, no weight decay, a cosine after 10 epochs of warm-up, centre crops.
    """
    probe = start()
    from m3ae_scale.evaluation import probes
    from m3ae_scale.evaluation.linear import LinearRecipe

    say_outcome(probes.linear_probe(probe, test, LinearRecipe(**recipe)))


@click.command()
@probe_options
@test_option
@click.option("--k", type=click.IntRange(1), default=20, show_default=True, help="Neighbours that vote.")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), default=0.07, show_default=True)
def knn(
    start: Callable[[], "Probe"],
    test: str,
    k: int,
    temperature: float,
) -> None:
    """Classify by the nearest neighbours among the frozen features of RUN: nothing is trained."""
    probe = start()
    from m3ae_scale.evaluation import probes

    say_outcome(probes.knn(probe, test, k, temperature))


@click.command()
@probe_options
@test_option
@click.option("--shifted", metavar="DATA", help="Labelled set with the same classes that looks different.")
@click.option(
    "--unknown",
    metavar="DATA",
    help="Samples of other classes, labelled or not, to be told from --test.  [default: --shifted]",
)
@recipe_options
def ood(
    start: Callable[[], "Probe"],
    test: str,
    shifted: str | None,
    unknown: str | None,
    **recipe: Any,
) -> None:
    """Probe RUN beyond what its linear layer was trained on: shifted data, and detection of the unknown.

    Detection by max-softmax, energy, Mahalanobis and k-nearest-neighbour scores: AUROC, AUPR, FPR at 95% TPR.
    """
    if shifted is None and unknown is None:
        raise click.UsageError("say what lies outside: --shifted and/or --unknown")
    probe = start()
    from m3ae_scale.evaluation import probes
    from m3ae_scale.evaluation.linear import LinearRecipe

    say_outcome(probes.out_of_distribution(probe, test, shifted, unknown, LinearRecipe(**recipe)))


@click.command()
@probe_options
@click.option("--limit", type=click.IntRange(5), default=2000, show_default=True, help="Samples to lay out.")
@click.option("--seed", default=0, show_default=True)
@click.option("--perplexity", type=click.FloatRange(1), default=30.0, show_default=True, help="Of t-SNE.")
def embed(
    start: Callable[[], "Probe"],
    limit: int,
    seed: int,
    perplexity: float,
) -> None:
    """Lay the frozen features of RUN out in the plane, coloured by class: t-SNE, and UMAP where it is installed."""
    probe = start()
    from m3ae_scale.evaluation import probes

    say_outcome(probes.embed(probe, limit, seed, perplexity))


def say_outcome(page: Path | None) -> None:
    """Print the figures and where they are, on the first rank."""
    if page is None:
        return
    import json

    metrics = json.loads((page.parent / "result.json").read_text())["metrics"]
    click.echo("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))
    click.echo(f"figures in {page.parent / 'result.json'}, the page: {page}")
