"""m3ae-scale weights: other people's weights in, ours out."""

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.group()
def weights() -> None:
    """Move weights in and out: m3ae_public, MAE, timm, Hugging Face. See docs/weights.md."""


@weights.command("import")
@click.argument("file", type=_PATH)
@click.argument("output", type=_PATH)
def import_(file: Path, output: Path) -> None:
    """Write the weights of FILE, a model.pkl of m3ae_public or a .pth of MAE, as the safetensors file OUTPUT.

    Nothing in FILE is run. Prints the section `model` with which `pretrain --init-from OUTPUT` fits.
    """
    import yaml

    from m3ae_scale.interop.convert import import_weights

    line, model = import_weights(file, output)
    click.echo(line)
    click.echo(yaml.safe_dump({"model": model}, sort_keys=False, default_flow_style=None).rstrip())


@weights.command()
@click.argument("path", type=_PATH)
@click.argument("output", type=_PATH)
@click.option(
    "--format",
    "form",
    type=click.Choice(["m3ae_public", "timm", "hf_vit", "hf_vitmae"]),
    required=True,
    help="Who is to read them: the official code (all weights), timm or Hugging Face ViT (the encoder), or Hugging "
    "Face ViTMAE (encoder and decoder for images).",
)
def export(path: Path, output: Path, form: str) -> None:
    """Write the weights of PATH, a run or a checkpoint, as the folder OUTPUT, with their configuration and a card."""
    from m3ae_scale.interop.export import export_as

    error = export_as(path, form, output)
    click.echo(f"{output}: {', '.join(sorted(p.name for p in output.iterdir()))}. {error}")
