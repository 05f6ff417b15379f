"""Batches in memory that look like those of a real data set to the model: the benchmarks measure no loader."""

import numpy as np
from numpy.typing import NDArray

from m3ae_scale.batch import Batch
from m3ae_scale.config import LossConfig, ModelConfig
from m3ae_scale.data.mask import visible_mask
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample

MASK_RATIO = 0.75  # of patches and of words, as in the paper


def caption_lengths(count: int, longest: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw lengths like those of CC12M's captions in word pieces: about 20 on average, `longest` at most, 3 at least.

    A lognormal with median 16: alt texts have a long tail (Changpinyo et al. 2021, Conceptual 12M, figure 3).
    """
    drawn = np.random.default_rng(seed).lognormal(np.log(16.0), 0.68, count)
    return np.clip(np.rint(drawn), 3, longest).astype(np.int64)


def samples(model: ModelConfig, vocabulary: int, count: int, *, text: bool = True, seed: int = 0) -> list[Sample]:
    """Invent `count` pairs of an image of noise and a caption of random words, or images alone; masks are drawn too."""
    rng = np.random.default_rng(seed)
    lengths = caption_lengths(count, model.text_length, seed)
    made = []
    for number, length in enumerate(lengths.tolist()):
        words = rng.integers(0, vocabulary, length, dtype=np.int32) if text else None
        made.append(
            Sample(
                name=f"{seed}/{number}",
                patches=rng.integers(0, 256, (model.patches, model.patch_dim), dtype=np.uint8),
                words=words,
                visible_patches=visible_mask(model.patches, MASK_RATIO, rng),
                visible_words=visible_mask(length, MASK_RATIO, rng) if text else None,
                seed=int(rng.integers(1 << 62)),
            )
        )
    return made


def batches(
    model: ModelConfig, vocabulary: int, micro_batch: int, count: int, *, text: bool = True, seed: int = 0
) -> list[Batch]:
    """Pack `count` micro-batches of `micro_batch` samples each."""
    seeds = range(1000 * seed, 1000 * seed + count)
    return [
        pack(samples(model, vocabulary, micro_batch, text=text, seed=s), LossConfig(), model.patch_dim) for s in seeds
    ]
