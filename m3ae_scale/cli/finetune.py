"""m3ae-scale eval finetune: the whole encoder trained on labels."""

from typing import Any

import click

from m3ae_scale.cli.options import on_ranks
from m3ae_scale.cli.probe import say_outcome, test_option


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--train", required=True, metavar="DATA", help="Labelled set: class folders, or tar shards.")
@test_option
@click.option("--label", metavar="KEY", help="cls, or a key of the json member.  [default: cls, else label]")
@click.option("--pool", type=click.Choice(["cls", "mean"]), default="mean", show_default=True)
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Peak rate per 256 samples.")
@click.option("--batch", type=click.IntRange(2), default=256, show_default=True, help="Samples a step, over all ranks.")
@click.option("--epochs", type=click.IntRange(1), default=50, show_default=True)
@click.option("--warmup", type=click.IntRange(0), default=5, show_default=True, help="Epochs.")
@click.option("--layer-decay", type=click.FloatRange(0, 1, min_open=True), default=0.6, show_default=True)
@click.option("--weight-decay", type=click.FloatRange(0), default=0.05, show_default=True)
@click.option("--mixup", type=click.FloatRange(0), default=0.8, show_default=True, help="0: off.")
@click.option("--cutmix", type=click.FloatRange(0), default=1.0, show_default=True, help="0: off.")
@click.option("--smoothing", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Of labels.")
@click.option("--drop-path", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Of the last block.")
@click.option("--seed", default=0, show_default=True)
@click.option("--nproc", type=click.IntRange(1), help="Processes on this machine.  [default: 1]")
def finetune(run: str, train: str, test: str, label: str | None, nproc: int | None, **recipe: Any) -> None:
    """Fine-tune RUN (a run folder or a checkpoint) on labelled images, and score it.

    AdamW whose rate falls towards the input. After each epoch its state is kept: a second call goes on.
    """
    on_ranks(nproc)
    from m3ae_scale.evaluation.classifier import FinetuneRecipe
    from m3ae_scale.evaluation.finetune import finetune as run_finetune

    say_outcome(run_finetune(run, train, test, label, FinetuneRecipe(**recipe)))
