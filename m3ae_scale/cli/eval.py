"""m3ae-scale eval: what a pretrained encoder is good for; one verb a module."""

import click

from m3ae_scale.cli.lazy import LazyVerbs

# verb -> the module that holds it
VERBS = {
    "linear-probe": "m3ae_scale.cli.probe",
    "finetune": "m3ae_scale.cli.finetune",
    "knn": "m3ae_scale.cli.probe",
    "reconstruct": "m3ae_scale.cli.look",
    "retrieve": "m3ae_scale.cli.look",
    "attention": "m3ae_scale.cli.look",
    "ood": "m3ae_scale.cli.probe",
    "embed": "m3ae_scale.cli.probe",
}


@click.group("eval", cls=LazyVerbs, verbs=VERBS)
def eval() -> None:
    """Say what a pretrained encoder is good for: docs/evaluate.md."""
