"""The linear layers that the model is built of, as a factory: plain here, tensor-parallel in parallel/linear.py.

Both yield modules with the same parameter names, so one model class is the product and its own single-process
reference.
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Layers(Protocol):
    """Makes the layers whose weights tensor parallelism splits, and scores logits split over the vocabulary."""

    def column(self, inputs: int, outputs: int, blocks: int = 1) -> nn.Module:
        """Make a linear layer whose outputs are split; `blocks` equal parts of the outputs are split each (q, k, v)."""

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """Make a linear layer whose inputs arrive split as `column` left them; its outputs are whole."""

    def vocabulary_embedding(self, words: int, dim: int) -> nn.Module:
        """Make a table of word embeddings: (n,) -> (n, dim)."""

    def vocabulary_head(self, dim: int, words: int) -> nn.Module:
        """Make the linear layer from features to (this rank's part of) the vocabulary's logits."""

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Score `logits` of `vocabulary_head`: loss (K,) float32, and predicted word ids (K,)."""

    def whole_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of the whole vocabulary, without a gradient: (K, words)."""

    def first_channel(self, width: int) -> int:
        """Where this rank's part begins in a split of `width` channels; keeps dropout the same at any split."""


class PlainLayers:
    """The layers of one device: torch's own."""

    def column(self, inputs: int, outputs: int, blocks: int = 1) -> nn.Module:
        """See Layers."""
        return nn.Linear(inputs, outputs)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """See Layers."""
        return nn.Linear(inputs, outputs)

    def vocabulary_embedding(self, words: int, dim: int) -> nn.Module:
        """See Layers."""
        return nn.Embedding(words, dim)

    def vocabulary_head(self, dim: int, words: int) -> nn.Module:
        """See Layers."""
        return nn.Linear(dim, words)

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See Layers."""
        return F.cross_entropy(logits.float(), targets, reduction="none"), logits.argmax(-1)

    def whole_logits(self, logits: Tensor) -> Tensor:
        """See Layers."""
        return logits

    def first_channel(self, width: int) -> int:
        """See Layers."""
        return 0
