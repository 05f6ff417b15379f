"""The tensor-parallel layers (megatron-core), under the parameter names of torch's own.

The model asks a factory for its layers (model/layers.py); this is the factory for more than one tensor-parallel
rank, and the only place that touches megatron's tensor_parallel.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    vocab_parallel_cross_entropy,
)
from torch import Tensor, nn

from m3ae_scale.parallel.shard import Shard, mark


class _Column(ColumnParallelLinear):
    """A column-parallel linear layer that returns its output alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _Row(RowParallelLinear):
    """A row-parallel linear layer that returns its output alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


def _initialised_elsewhere(weight: Tensor) -> None:
    # model/init.py draws every value, by name, so that no topology changes it.
    return None


class TensorParallelLayers:
    """The Layers factory (model/layers.py) for one rank of a tensor-parallel group."""

    def __init__(self, group: dist.ProcessGroup):
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self._vocabulary = 0
        config = ModelParallelConfig(
            tensor_model_parallel_size=self.size, use_cpu_initialization=True, perform_initialization=False
        )
        self._common: dict[str, Any] = {"config": config, "init_method": _initialised_elsewhere, "tp_group": group}

    def column(self, inputs: int, outputs: int, blocks: int = 1) -> nn.Module:
        """See Layers."""
        layer = _Column(inputs, outputs, **self._common)
        mark(layer.weight, Shard(0, outputs, blocks))
        mark(layer.bias, Shard(0, outputs, blocks))
        return layer

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """See Layers."""
        layer = _Row(inputs, outputs, bias=True, input_is_parallel=True, skip_bias_add=False, **self._common)
        mark(layer.weight, Shard(1, inputs))
        return layer

    def vocabulary_embedding(self, words: int, dim: int) -> nn.Module:
        """See Layers."""
        layer = VocabParallelEmbedding(self._padded(words), dim, **self._common)
        mark(layer.weight, Shard(0, words))
        return layer

    def vocabulary_head(self, dim: int, words: int) -> nn.Module:
        """See Layers."""
        self._vocabulary = words
        layer = _Column(dim, self._padded(words), **self._common)
        mark(layer.weight, Shard(0, words))
        mark(layer.bias, Shard(0, words))
        return layer

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """See Layers."""
        logits = self._without_padding(logits.float())
        with torch.no_grad():
            predicted = self._argmax(logits)
        # Megatron's kernel overwrites its input, which is why it gets a copy of its own.
        return vocab_parallel_cross_entropy(logits.clone(), targets), predicted

    def whole_logits(self, logits: Tensor) -> Tensor:
        """See Layers."""
        # Megatron's own gather asks for the current CUDA device, whatever the logits are on.
        parts = [torch.empty_like(logits) for _ in range(self.size)]
        dist.all_gather(parts, logits.contiguous(), group=self.group)
        return torch.cat(parts, dim=1)[:, : self._vocabulary]

    def first_channel(self, width: int) -> int:
        """See Layers."""
        return self.rank * (width // self.size)

    def _padded(self, words: int) -> int:
        return -(-words // self.size) * self.size

    def _without_padding(self, logits: Tensor) -> Tensor:
        # The rows that pad the vocabulary to a multiple of the group must not enter the softmax.
        real = self._vocabulary - self.rank * logits.shape[1]
        if real >= logits.shape[1]:
            return logits
        padding = torch.arange(logits.shape[1], device=logits.device) >= real
        return logits.masked_fill(padding, torch.finfo(logits.dtype).min)

    def _argmax(self, logits: Tensor) -> Tensor:
        value, index = logits.max(-1)
        best = value.clone()
        dist.all_reduce(best, op=dist.ReduceOp.MAX, group=self.group)
        # The lowest word id among equals, as argmax on one device.
        word = torch.where(value == best, index + self.rank * logits.shape[1], self._padded(self._vocabulary))
        dist.all_reduce(word, op=dist.ReduceOp.MIN, group=self.group)
        return word
