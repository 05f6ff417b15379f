"""FLOPs of a training step over useful tokens only: what the model needs, and what recomputation and padding add.

A multiply-add is two. Matrix products are counted, as is usual (Chowdhery et al. 2022, PaLM, appendix B): the encoder
on visible tokens, the decoder on all, the heads on predicted ones, attention on pairs of tokens of one sample. Norms,
GELU, gathers and the optimizer are not.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from m3ae_scale.batch import Batch, Stream
from m3ae_scale.config import ModelConfig
from m3ae_scale.sizes import Tower


class Work(NamedTuple):
    """What a batch gives to compute; the works of several batches add up."""

    patches: float  # visible ones, which are embedded
    encoder_tokens: float
    encoder_pairs: float  # sum of squared sample lengths: what attention looks at
    decoder_tokens: float
    decoder_pairs: float
    image_targets: float
    text_targets: float

    def plus(self, other: "Work") -> "Work":
        """Add two works up."""
        return Work(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Parts(NamedTuple):
    """Forward FLOPs by room of the model."""

    embed: float
    encoder: float
    project: float
    decoder: float
    image_head: float
    text_head: float


def work_of(batch: Batch, padded: bool = False) -> Work:
    """Count the work of a batch. On a GPU this waits for the device.

    padded: count attention as through a padded block, every sample as long as the longest.
    """
    pairs = _padded_pairs if padded else _pairs
    return Work(
        patches=len(batch.visible_patches),
        encoder_tokens=len(batch.encoder.order),
        encoder_pairs=pairs(batch.encoder),
        decoder_tokens=len(batch.decoder.order),
        decoder_pairs=pairs(batch.decoder),
        image_targets=len(batch.image_targets.row),
        text_targets=len(batch.text_targets.row),
    )


def pairs_per_sample(stream: Stream) -> Tensor:
    """Square the length of each sample: (S,) float64, on the stream's device."""
    return stream.cu_seqlens.diff().double().square()


def forward_flops(model: ModelConfig, vocabulary: int, work: Work) -> Parts:
    """FLOPs of one forward pass over `work`, by part of the model; `vocabulary` in word pieces."""
    d, e = model.encoder.dim, model.decoder.dim
    hidden = model.output_head_depth * e * e
    return Parts(
        embed=2 * work.patches * model.patch_dim * d,
        encoder=_tower(model.encoder.shape, work.encoder_tokens, work.encoder_pairs),
        project=2 * work.encoder_tokens * d * e,
        decoder=_tower(model.decoder.shape, work.decoder_tokens, work.decoder_pairs),
        image_head=2 * work.image_targets * (hidden + e * (model.image_codebook or model.patch_dim)),
        text_head=2 * work.text_targets * (hidden + e * vocabulary),
    )


def step_flops(model: ModelConfig, vocabulary: int, work: Work) -> float:
    """Model FLOPs of forward and backward: three times the forward, but pixels take no gradient."""
    parts = forward_flops(model, vocabulary, work)
    return 3 * sum(parts) - parts.embed


def batch_flops(model: ModelConfig, vocabulary: int, batch: Batch) -> Tensor:
    """`step_flops` of a batch as a float64 number on its device, which nobody waits for."""
    streams = {"encoder_pairs": batch.encoder, "decoder_pairs": batch.decoder}
    pairs: dict[str, Any] = {name: pairs_per_sample(stream).sum() for name, stream in streams.items()}
    work = Work(
        patches=len(batch.visible_patches),
        encoder_tokens=len(batch.encoder.order),
        decoder_tokens=len(batch.decoder.order),
        image_targets=len(batch.image_targets.row),
        text_targets=len(batch.text_targets.row),
        **pairs,
    )
    return torch.as_tensor(step_flops(model, vocabulary, work))


def hardware_flops(model: ModelConfig, vocabulary: int, work: Work, recompute: str = "none") -> float:
    """FLOPs that the hardware executes: `step_flops`, and what engine.recompute computes again.

    Give `work_of(batch, padded=True)` where attention pads. What a fused kernel computes again inside itself (flash
    attention's scores, the pieces of the text head) is not counted.
    """
    return step_flops(model, vocabulary, work) + recomputed_flops(model, work, recompute)


def recomputed_flops(model: ModelConfig, work: Work, recompute: str) -> float:
    """FLOPs of what the policy (engine/recompute.py) computes a second time."""
    towers = (
        (model.encoder.shape, work.encoder_tokens, work.encoder_pairs),
        (model.decoder.shape, work.decoder_tokens, work.decoder_pairs),
    )
    if recompute == "none":
        return 0.0
    if recompute == "selective":  # the matrix products are kept; a fused attention is none of them
        return sum(4 * tower.depth * tower.dim * pairs for tower, _, pairs in towers)
    every = int(recompute.removeprefix("every_")) if recompute.startswith("every_") else 1
    # One block in `every`, counted through both towers, encoder first. Recomputation stops at the last tensor that the
    # backward pass needs, which lies before the block's last product.
    blocks = []
    for tower, tokens, pairs in towers:
        last = 2 * tokens * tower.dim * tower.mlp_dim
        blocks += [_block(tower, tokens, pairs) - last] * tower.depth
    return sum(blocks[::every])


def _tower(tower: Tower, tokens: float, pairs: float) -> float:
    return tower.depth * _block(tower, tokens, pairs)


def _block(tower: Tower, tokens: float, pairs: float) -> float:
    weights = 4 * tower.dim * tower.dim + 2 * tower.dim * tower.mlp_dim
    return 2 * tokens * weights + 4 * tower.dim * pairs


def _pairs(stream: Stream) -> float:
    return float(pairs_per_sample(stream).sum())


def _padded_pairs(stream: Stream) -> float:
    return float((stream.cu_seqlens.shape[0] - 1) * stream.max_seqlen**2)
