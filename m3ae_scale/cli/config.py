"""m3ae-scale config: the experiment as it was understood, and the DeepSpeed config that it leads to."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from m3ae_scale.cli.options import experiment_argument, set_option


@click.group()
def config() -> None:
    """Show what an experiment says, and what DeepSpeed is told."""


@config.command()
@experiment_argument
@set_option
def show(experiment: str, overrides: tuple[str, ...]) -> None:
    """Print every key of EXPERIMENT with its value and where that came from; the output is YAML."""
    from m3ae_scale.config import annotated, load_experiment

    click.echo(annotated(*load_experiment(experiment, list(overrides))), nl=False)


@config.command()
@experiment_argument
@set_option
@click.option("--nproc", type=click.IntRange(1), help="Ranks of the run.  [default: parallel.tensor]")
@click.option("--tokens-per-sample", type=float, help="Average length of a sample; needed with batch.micro_tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def explain(
    experiment: str, overrides: tuple[str, ...], nproc: int | None, tokens_per_sample: float | None, as_json: bool
) -> None:
    """Print the DeepSpeed config that EXPERIMENT leads to, each line with where its value came from."""
    from m3ae_scale.config import load_experiment
    from m3ae_scale.engine.deepspeed_config import resolve
    from m3ae_scale.parallel.topology import Topology

    loaded, origins = load_experiment(experiment, list(overrides))
    topology = Topology(nproc or loaded.parallel.tensor, loaded.parallel.tensor)
    final = resolve(loaded, origins, topology, Path(experiment).parent, tokens_per_sample)
    if as_json:
        shape = {**vars(final.plan), "world": topology.world, "tensor": topology.tensor}
        document = {"config": final.config, "provenance": final.provenance, "plan": shape}
        click.echo(json.dumps(document, indent=2))
        return
    plan = final.plan
    click.echo(f"# {topology.world} ranks = tensor {topology.tensor} x data {topology.data}, {final.precision}")
    click.echo(
        f"# {plan.global_batch} samples a step = micro {plan.micro_batch} x accumulation {plan.accumulation} "
        f"x data {plan.data}"
    )
    lines = list(_lines(final.config, final.provenance))
    width = max(len(text) for text, _ in lines)
    for text, place in lines:
        click.echo(f"{text:<{width}}  # {place}" if place else text)


def _lines(values: Mapping[str, Any], places: Mapping[str, str], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the lines of `values` as indented JSON, each leaf with its place."""
    indent = "  " * (prefix.count(".") + 1)
    if not prefix:
        yield "{", ""
    for i, (key, value) in enumerate(values.items()):
        comma = "," if i < len(values) - 1 else ""
        if isinstance(value, dict) and value:
            yield f'{indent}"{key}": {{', ""
            yield from _lines(value, places, f"{prefix}{key}.")
            yield f"{indent}}}{comma}", ""
        else:
            yield f'{indent}"{key}": {json.dumps(value)}{comma}', places.get(f"{prefix}{key}", "")
    if not prefix:
        yield "}", ""
