"""Looks at the model without training it: validation losses, and pictures of what it fills in."""

from collections.abc import Callable
from pathlib import Path

import torch

from m3ae_scale.config import Experiment
from m3ae_scale.data import ValidationData
from m3ae_scale.engine.build import Built
from m3ae_scale.model.losses import objective
from m3ae_scale.model.pixels import to_bytes
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.training.meters import LossSums
from m3ae_scale.training.pictures import examples, reconstruction_sheet
from m3ae_scale.training.share import on_device


@torch.no_grad()
def validate(
    experiment: Experiment, built: Built, groups: Groups, data: ValidationData, progress: Callable[[], None]
) -> dict[str, float]:
    """Return the mean losses over the validation set, each under "validation_...". Every rank must call it.

    progress: called before each micro-batch.
    """
    sums = LossSums(groups.device)
    built.engine.eval()
    for batch in on_device(data if groups.tensor_rank == 0 else None, groups):
        progress()
        losses = built.engine(batch)
        sums.add(losses, objective(losses, batch, experiment.loss), batch)
    built.engine.train()
    means, _, _ = sums.means(groups.sum)
    return {f"validation_{name}": value for name, value in means.items()}


@torch.no_grad()
def draw_pictures(
    experiment: Experiment,
    built: Built,
    groups: Groups,
    data: ValidationData,
    piece: Callable[[int], str],
    path: Path,
    limit: int = 6,
) -> None:
    """Draw the first validation samples, hidden parts filled in, into the PNG at `path`. Every rank must call it."""
    batches = on_device(data if groups.tensor_rank == 0 else None, groups)
    batch = next(batches)
    built.engine.eval()
    filled = built.engine.module.reconstruct(batch)
    built.engine.train()
    batches.close()  # type: ignore[attr-defined]
    if groups.first:
        augment = experiment.data.augment
        pixels = None if experiment.model.image_codebook else to_bytes(filled.image, augment.mean, augment.std)
        words = filled.text.argmax(-1)
        reconstruction_sheet(examples(batch, pixels, words, experiment.model.patch, piece, limit), path)
