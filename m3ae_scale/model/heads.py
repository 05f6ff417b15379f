"""The output heads: from decoded tokens to pixels (or codebook entries) and to words, each with its loss."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from m3ae_scale.config import ModelConfig
from m3ae_scale.kernels.choose import Kernels
from m3ae_scale.model.layers import Layers


class TextScore(NamedTuple):
    """How well K words were predicted."""

    loss: Tensor  # (K,) float32, cross-entropy in nats
    predicted: Tensor  # (K,) int64, the likeliest word


class Hidden(nn.Module):
    """The optional hidden layers of a head (m3ae_public MLP): linear, GELU, LayerNorm, residual from the second on."""

    def __init__(self, dim: int, depth: int, kernels: Kernels):
        super().__init__()
        self.norm = kernels.layer_norm(dim) if depth else nn.Identity()
        self.linears = nn.ModuleList(nn.Linear(dim, dim) for _ in range(depth))
        self.norms = nn.ModuleList(kernels.layer_norm(dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Transform decoded tokens. x: (K, dim) -> (K, dim)."""
        x = self.norm(x)
        for i, (linear, norm) in enumerate(zip(self.linears, self.norms, strict=True)):
            y = norm(F.gelu(linear(x), approximate="tanh"))
            x = x + y if i else y
        return x


class ImageHead(nn.Module):
    """Predicts patches: their normalised pixels, or their entries in an image tokenizer's codebook."""

    def __init__(self, config: ModelConfig, kernels: Kernels):
        super().__init__()
        dim = config.decoder.dim
        self.discrete = config.image_codebook > 0
        self.hidden = Hidden(dim, config.output_head_depth, kernels)
        self.output = nn.Linear(dim, config.image_codebook or config.patch_dim)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """Score each patch. x: (K, dim); target: (K, patch_dim) pixels or (K,) entries -> loss (K,) float32."""
        output = self.predict(x)
        if self.discrete:
            return F.cross_entropy(output.float(), target, reduction="none")
        return (output.float() - target.float()).square().mean(-1)

    def predict(self, x: Tensor) -> Tensor:
        """Predict patches. x: (K, dim) -> (K, patch_dim) normalised pixels, or (K, codebook) logits."""
        return self.output(self.hidden(x))


class TextHead(nn.Module):
    """Predicts words over the vocabulary."""

    def __init__(self, config: ModelConfig, vocabulary: int, layers: Layers, kernels: Kernels):
        super().__init__()
        dim = config.decoder.dim
        self.layers = layers
        self.hidden = Hidden(dim, config.output_head_depth, kernels)
        self.output = layers.vocabulary_head(dim, vocabulary, kernels.text_loss)

    def forward(self, x: Tensor, target: Tensor) -> TextScore:
        """Score each word. x: (K, dim); target: (K,) int64."""
        return TextScore(*self.output(self.hidden(x), target))

    def predict(self, x: Tensor) -> Tensor:
        """Predict words. x: (K, dim) -> logits (K, vocabulary)."""
        return self.layers.whole_logits(self.output(self.hidden(x)))
