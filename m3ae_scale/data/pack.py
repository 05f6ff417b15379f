"""Packs samples into a Batch: one run of tokens for the encoder, one for the decoder, and the indices between.

Every index is the row of some concatenation, found by counting tokens per sample; no step looks at one token at a
time. The shape letters are those of m3ae_scale/batch.py. In every mask True means: visible to the encoder.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from m3ae_scale.batch import CLS, IMAGE, TEXT, Batch, Stream, Targets
from m3ae_scale.config.schema import LossConfig
from m3ae_scale.data.sample import Sample

Array = NDArray[Any]
Ints = NDArray[np.int64]


class _Tokens(NamedTuple):
    """n tokens, each with its place."""

    modality: Ints  # (n,)
    position: Ints  # (n,)
    sample: Ints  # (n,)

    def at(self, rows: Ints) -> "_Tokens":
        return _Tokens(*(column[rows] for column in self))


def pack(samples: Sequence[Sample], loss: LossConfig, patch_dim: int) -> Batch:
    """Pack S samples into one micro-batch; kept tokens stay in their order.

    loss: with `all_image_tokens` or `all_text_tokens` every token of that modality is predicted, not only masked ones.
    patch_dim: numbers in one patch, the width of `Batch.patches` even when no sample has an image.
    """
    s = len(samples)
    cls = _Tokens(np.full(s, CLS), np.zeros(s, np.int64), np.arange(s))
    image = _tokens(IMAGE, [x.patches for x in samples], [None] * s)
    text = _tokens(TEXT, [x.words for x in samples], [x.word_positions for x in samples])
    seen_patches = _join([x.visible_patches for x in samples], np.bool_)
    seen_words = _join([x.visible_words for x in samples], np.bool_)
    (visible_patches,), (visible_words,) = seen_patches.nonzero(), seen_words.nonzero()
    (masked_patches,), (masked_words,) = (~seen_patches).nonzero(), (~seen_words).nonzero()

    visible = cls, image.at(visible_patches), text.at(visible_words)
    encoder_rows, encoder_starts = _lay_out(*visible)
    encoder = _stream(_chain(*visible), np.concatenate(encoder_rows), encoder_starts)

    (cls_row, patch_row, word_row), decoder_starts = _lay_out(cls, image, text)
    in_encoder = encoder.order.numpy()
    seen_row = np.concatenate([cls_row, patch_row[visible_patches], word_row[visible_words]])[in_encoder]
    decoder = _stream(
        _chain(_chain(*visible).at(in_encoder), image.at(masked_patches), text.at(masked_words)),
        np.concatenate([seen_row, patch_row[masked_patches], word_row[masked_words]]),
        decoder_starts,
    )
    predicted_patches = np.arange(len(patch_row)) if loss.all_image_tokens else masked_patches
    predicted_words = np.arange(len(word_row)) if loss.all_text_tokens else masked_words
    return Batch(
        patches=torch.from_numpy(_join_patches(samples, patch_dim)),
        words=torch.from_numpy(_join([x.words for x in samples], np.int64)),
        visible_patches=torch.from_numpy(visible_patches),
        visible_words=torch.from_numpy(visible_words),
        encoder=encoder,
        decoder=decoder,
        image_targets=_targets(image, patch_row, predicted_patches, s),
        text_targets=_targets(text, word_row, predicted_words, s),
        has_image=torch.from_numpy(np.bincount(image.sample, minlength=s) > 0),
        has_text=torch.from_numpy(np.bincount(text.sample, minlength=s) > 0),
        sample_seed=torch.from_numpy(np.array([x.seed for x in samples], np.int64)),
        keys=tuple(x.name for x in samples),
    )


def _tokens(modality: int, rows: Sequence[Array | None], positions: Sequence[Ints | None]) -> _Tokens:
    """All tokens of one modality, in sample order; positions default to 0, 1, 2, ... in each sample."""
    counts = np.array([0 if r is None else len(r) for r in rows], np.int64)
    sample = np.repeat(np.arange(len(rows)), counts)
    position = _rank(sample, counts)
    if any(p is not None for p in positions):
        start = counts.cumsum() - counts
        for i, given in enumerate(positions):
            if given is not None:
                position[start[i] : start[i] + counts[i]] = given
    return _Tokens(np.full(len(sample), modality), position, sample)


def _rank(sample: Ints, counts: Ints) -> Ints:
    """How many tokens of its own sample stand before each token; `sample` is sorted, `counts` are per sample."""
    return np.arange(len(sample)) - (counts.cumsum() - counts)[sample]


def _lay_out(cls: _Tokens, image: _Tokens, text: _Tokens) -> tuple[tuple[Ints, Ints, Ints], Ints]:
    """Where each token goes when every sample becomes the run [CLS, patches, words].

    Returns the stream's row of each token, per modality, and (S + 1,) the row at which each sample starts.
    """
    s = len(cls.sample)
    patches, words = np.bincount(image.sample, minlength=s), np.bincount(text.sample, minlength=s)
    starts = np.concatenate([[0], (1 + patches + words).cumsum()]).astype(np.int64)
    patch_row = starts[image.sample] + 1 + _rank(image.sample, patches)
    word_row = starts[text.sample] + 1 + patches[text.sample] + _rank(text.sample, words)
    return (starts[:-1], patch_row, word_row), starts


def _stream(tokens: _Tokens, row: Ints, starts: Ints) -> Stream:
    """The stream in which `tokens`, in the order of the concatenation, stand at `row`."""
    order = np.empty_like(row)
    order[row] = np.arange(len(row))
    modality, position, sample = (torch.from_numpy(column) for column in tokens.at(order))
    return Stream(
        order=torch.from_numpy(order),
        inverse=torch.from_numpy(row),
        modality=modality,
        position=position,
        sample=sample,
        cu_seqlens=torch.from_numpy(starts.astype(np.int32)),
        max_seqlen=int(np.diff(starts).max(initial=0)),
    )


def _targets(tokens: _Tokens, decoder_row: Ints, predicted: Ints, samples: int) -> Targets:
    sample = tokens.sample[predicted]
    counts = np.bincount(sample, minlength=samples)
    return Targets(
        row=torch.from_numpy(decoder_row[predicted]),
        token=torch.from_numpy(predicted),
        sample=torch.from_numpy(sample),
        weight=torch.from_numpy((1.0 / counts[sample]).astype(np.float32)),
    )


def _chain(*parts: _Tokens) -> _Tokens:
    return _Tokens(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _join(arrays: Sequence[Array | None], dtype: type) -> Array:
    return np.concatenate([np.empty(0, dtype), *(a for a in arrays if a is not None)]).astype(dtype, copy=False)


def _join_patches(samples: Sequence[Sample], patch_dim: int) -> Array:
    images = [x.patches for x in samples if x.patches is not None]
    return np.concatenate(images) if images else np.empty((0, patch_dim), np.uint8)
