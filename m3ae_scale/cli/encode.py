"""m3ae-scale encode: features of images, texts, pairs or shards from a trained encoder."""

from pathlib import Path

import click

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")


@click.command()
@click.argument("run", type=click.Path(file_okay=False))
@click.option("--images", metavar="FOLDER", help="Encode the images in FOLDER.")
@click.option("--texts", metavar="FILE", help="Encode each line of FILE; with --images, the caption of each image.")
@click.option("--shards", metavar="PATH", help="Encode the samples of tar shards: a folder, glob or brace pattern.")
@click.option(
    "--kind", type=click.Choice(["paired", "image", "text"]), default="paired", help="What to take from the shards."
)
@click.option("--output", required=True, metavar="FILE", help="Where the features go: .npz or .safetensors.")
@click.option("--device", default="cpu", show_default=True)
def encode(
    run: str, images: str | None, texts: str | None, shards: str | None, kind: str, output: str, device: str
) -> None:
    """Write the features that the encoder of RUN (a run folder or a checkpoint) gives.

    The file holds cls and mean (samples, dim) in float32; a .npz also holds names.
    """
    from m3ae_scale.errors import InputError

    if Path(output).suffix not in (".npz", ".safetensors"):
        raise InputError(
            f"--output {output}: found {Path(output).suffix or 'no ending'}, expected .npz or .safetensors"
        )
    if (shards is None) == (images is None and texts is None):
        raise InputError("encode: say what to encode: --shards, or --images and/or --texts")
    from m3ae_scale.evaluation.encode import load_encoder, save_features, shard_samples

    encoder = load_encoder(run, device)
    if shards is not None:
        features = encoder.encode_samples(shard_samples(shards, kind, run))
    else:
        features = encoder.encode(_images(images), _lines(texts))
    save_features(features, Path(output))
    click.echo(f"{len(features.names)} samples x {features.cls.shape[1]} features in {output}")


def _images(folder: str | None) -> list[Path] | None:
    from m3ae_scale.errors import InputError

    if folder is None:
        return None
    if not Path(folder).is_dir():
        raise InputError(f"--images {folder}: no such folder")
    found = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        raise InputError(f"--images {folder}: no file there ends in one of {', '.join(IMAGE_ENDINGS)}")
    return found


def _lines(file: str | None) -> list[str] | None:
    from m3ae_scale.errors import InputError

    if file is None:
        return None
    try:
        return Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--texts {file}: cannot read it as UTF-8 text ({error})") from None
