"""m3ae-scale sizes: the named model sizes with their shapes and parameter counts."""

import click


@click.command()
@click.option("--vocabulary", default=30522, show_default=True, help="Word pieces; the default is BERT's.")
@click.option("--patch", default=16, show_default=True, help="Side of a patch, pixels.")
def sizes(vocabulary: int, patch: int) -> None:
    """Print the named sizes. A shape is dim x depth x heads."""
    from m3ae_scale.sizes import SIZES, model_parameters, tower_parameters

    rows = [("size", "encoder", "mlp", "decoder", "encoder parameters", "whole model", "shape from")]
    for name, size in SIZES.items():
        e, d = size.encoder, size.decoder
        counts = tower_parameters(e), model_parameters(e, d, vocabulary, patch * patch * 3)
        shapes = (f"{tower.dim} x {tower.depth} x {tower.heads}" for tower in (e, d))
        rows.append((name, next(shapes), str(e.mlp_dim), next(shapes), *(f"{n:,}" for n in counts), size.source))
    for name, encoder, mlp, decoder, parameters, whole, source in rows:
        click.echo(f"{name:<6} {encoder:<14} {mlp:>5}  {decoder:<12} {parameters:>18} {whole:>15}  {source}")
    click.echo(f"The whole model has {vocabulary:,} word pieces and patches of {patch} x {patch} pixels.")
