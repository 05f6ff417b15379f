"""m3ae-scale sizes: the named model sizes with their shapes and parameter counts."""

import click


@click.command()
@click.option("--vocabulary", default=30522, show_default=True, help="Word pieces; the default is BERT's.")
@click.option("--patch", default=16, show_default=True, help="Side of a patch, pixels.")
def sizes(vocabulary: int, patch: int) -> None:
    """Print the named sizes. A shape is dim x depth x heads."""
    from m3ae_scale.sizes import SIZES, model_parameters, tower_parameters

    click.echo(_row("size", "encoder", "mlp", "decoder", "encoder parameters", "whole model", "shape from"))
    for name, size in SIZES.items():
        encoder, decoder = (f"{tower.dim} x {tower.depth} x {tower.heads}" for tower in (size.encoder, size.decoder))
        of_encoder = tower_parameters(size.encoder)
        of_all = model_parameters(size.encoder, size.decoder, vocabulary, patch * patch * 3)
        mlp = str(size.encoder.mlp_dim)
        click.echo(_row(name, encoder, mlp, decoder, f"{of_encoder:,}", f"{of_all:,}", size.source))
    click.echo(f"The whole model has {vocabulary:,} word pieces and patches of {patch} x {patch} pixels.")


def _row(name: str, encoder: str, mlp: str, decoder: str, of_encoder: str, of_all: str, source: str) -> str:
    return f"{name:<6} {encoder:<14} {mlp:>6}  {decoder:<12} {of_encoder:>18} {of_all:>15}  {source}"
