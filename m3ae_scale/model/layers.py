"""The linear layers that the model is built of, as a factory: plain here, tensor-parallel in parallel/linear.py.

Both yield modules with the same parameter names, so one model class is the product and its own single-process
reference.
"""

from typing import Protocol

from torch import Tensor, nn

from m3ae_scale.kernels.linear import LinearFn, torch_linear
from m3ae_scale.kernels.linear_cross_entropy import LinearCrossEntropy


class Layers(Protocol):
    """Makes the layers whose weights tensor parallelism splits."""

    parts: int  # that a tower's tokens are split into between its linear layers; 1: they are not

    def column(self, inputs: int, outputs: int, blocks: int = 1) -> nn.Module:
        """Make a linear layer whose outputs are split; `blocks` equal parts of the outputs are split each (q, k, v)."""

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """Make a linear layer whose inputs arrive split as `column` left them; its outputs are whole."""

    def vocabulary_embedding(self, words: int, dim: int) -> nn.Module:
        """Make a table of word embeddings: (n,) -> (n, dim)."""

    def vocabulary_head(self, dim: int, words: int, score: LinearCrossEntropy) -> nn.Module:
        """Make the layer from features to words.

        Called with x (K, dim) it gives (this rank's part of) the logits; with targets (K,) too, what `score` gives:
        loss (K,) float32 and predicted word ids (K,), without ever holding all logits.
        """

    def whole_logits(self, logits: Tensor) -> Tensor:
        """Return the logits of the whole vocabulary, without a gradient: (K, words)."""

    def split(self, x: Tensor) -> Tensor:
        """Return this rank's part of the rows: (n, ...) -> (n / parts, ...); `parts` must divide n."""

    def join(self, x: Tensor) -> Tensor:
        """Return the rows of all parts: (n / parts, ...) -> (n, ...)."""

    def first_channel(self, width: int) -> int:
        """Where this rank's part begins in a split of `width` channels; keeps dropout the same at any split."""


class _Linear(nn.Linear):
    """A linear layer by one of the backends of kernels/linear.py."""

    def __init__(self, inputs: int, outputs: int, apply_linear: LinearFn):
        super().__init__(inputs, outputs)
        self.apply_linear = apply_linear

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, inputs) -> (n, outputs)."""
        return self.apply_linear(x, self.weight, self.bias)


class _VocabularyHead(nn.Linear):
    """A linear layer that can score its logits itself: ZeRO-3 gathers a weight only while its own module runs."""

    def __init__(self, dim: int, words: int, score: LinearCrossEntropy):
        super().__init__(dim, words)
        self.score = score

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """See Layers.vocabulary_head."""
        if target is None:
            return super().forward(x)
        return self.score(x, self.weight, self.bias, target, None)


class PlainLayers:
    """The layers of one device."""

    parts = 1

    def __init__(self, linear: LinearFn = torch_linear):
        self.linear = linear

    def column(self, inputs: int, outputs: int, blocks: int = 1) -> nn.Module:
        """See Layers."""
        return _Linear(inputs, outputs, self.linear)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """See Layers."""
        return _Linear(inputs, outputs, self.linear)

    def vocabulary_embedding(self, words: int, dim: int) -> nn.Module:
        """See Layers."""
        return nn.Embedding(words, dim)

    def vocabulary_head(self, dim: int, words: int, score: LinearCrossEntropy) -> nn.Module:
        """See Layers."""
        return _VocabularyHead(dim, words, score)

    def whole_logits(self, logits: Tensor) -> Tensor:
        """See Layers."""
        return logits

    def split(self, x: Tensor) -> Tensor:
        """See Layers."""
        return x

    def join(self, x: Tensor) -> Tensor:
        """See Layers."""
        return x

    def first_channel(self, width: int) -> int:
        """See Layers."""
        return 0
