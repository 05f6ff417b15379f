"""Batch: the one contract between data and model. A micro-batch as packed runs of tokens, drawn on the host.

A sample is an image, a text, or a pair. Its tokens are [CLS, patches, words]; the tokens of all samples lie end
to end, without padding, and modality is an attribute of a token. The encoder's stream holds visible tokens only,
the decoder's stream all of them. Every index below is made on the host; the device only gathers.

Shape letters: S samples; P patches and W word pieces of all samples; E and D tokens of the encoder's and the
decoder's stream; K predicted tokens of one modality.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

CLS, IMAGE, TEXT = 0, 1, 2  # the modality of a token


@dataclass(frozen=True)
class Stream:
    """One packed run of n tokens.

    The module that builds it concatenates its pieces; row i of the stream is row `order[i]` of that
    concatenation, and row j of the concatenation is row `inverse[j]` of the stream.
    Encoder: [CLS of each sample (S), visible patches, visible words].
    Decoder: [the encoder's stream (E), masked patches, masked words].
    """

    order: Tensor  # (n,) int64, a permutation
    inverse: Tensor  # (n,) int64, its inverse
    modality: Tensor  # (n,) int64: CLS, IMAGE or TEXT
    position: Tensor  # (n,) int64: patch number (row-major) or word number within its sample; 0 for CLS
    sample: Tensor  # (n,) int64: which of the S samples
    cu_seqlens: Tensor  # (S + 1,) int32: sample s is rows cu_seqlens[s] to cu_seqlens[s + 1]
    max_seqlen: int  # tokens of the longest sample


@dataclass(frozen=True)
class Targets:
    """The K tokens of one modality that are predicted: masked ones, or all with an all-token loss."""

    row: Tensor  # (K,) int64: row of the decoder's stream
    token: Tensor  # (K,) int64: row of Batch.patches or of Batch.words
    sample: Tensor  # (K,) int64
    weight: Tensor  # (K,) float32: 1 / (predicted tokens of this modality in this sample)


@dataclass(frozen=True)
class Batch:
    """One micro-batch of S samples."""

    patches: Tensor  # (P, patch * patch * 3), inner order (row, col, channel): uint8, or float32 already normalised
    words: Tensor  # (W,) int64
    visible_patches: Tensor  # (visible,) int64: rows of `patches`, in sample order
    visible_words: Tensor  # (visible,) int64: rows of `words`, in sample order
    encoder: Stream
    decoder: Stream
    image_targets: Targets
    text_targets: Targets
    has_image: Tensor  # (S,) bool
    has_text: Tensor  # (S,) bool; a text without an image is unpaired
    sample_seed: Tensor  # (S,) int64: from (seed, epoch, key); drop path and dropout are functions of it
    patch_tokens: Tensor | None = None  # (P,) int64: codebook ids of the patches, for discretised image targets
    keys: tuple[str, ...] = ()  # (S,) "source/shard/key" of each sample, for logs and quarantine; host only

    @property
    def samples(self) -> int:
        """Number of samples S, known on the host."""
        return self.has_image.shape[0]

    @property
    def tokens(self) -> int:
        """Real tokens in the batch (patches, words and CLS), known on the host."""
        return self.decoder.order.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """Return the batch on `device`."""
        return map_tensors(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; DataLoader calls this by name."""
        return map_tensors(self, Tensor.pin_memory)


T = TypeVar("T", bound="Batch | Stream | Targets")


def map_tensors(record: T, function: Callable[[Tensor], Tensor]) -> T:
    """Return `record` with `function` applied to each tensor in it, nested records included."""
    changed: dict[str, Any] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, Stream | Targets):
            changed[field.name] = map_tensors(value, function)
    return replace(record, **changed)
