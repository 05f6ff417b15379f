"""The objective: what the optimizer minimises, as one number per sample.

total = image + text x 0.5 (pairs) + unpaired text x w, each the mean over a sample's predicted tokens (paper,
section 3.2; m3ae_main loss_fn). The training loss is the sum over the global batch divided by its samples, so it
does not depend on how samples are dealt to ranks and micro-batches.
"""

from torch import Tensor

from m3ae_scale.batch import Batch
from m3ae_scale.config import LossConfig
from m3ae_scale.model.m3ae import Losses


def objective(losses: Losses, batch: Batch, weights: LossConfig) -> Tensor:
    """Weigh each sample's losses: (S,) float32."""
    paired = batch.has_image.to(losses.text.dtype)
    text_weight = weights.text * paired + weights.unpaired_text * (1 - paired)
    return weights.image * losses.image + text_weight * losses.text
