"""The tensor-parallel layers (megatron-core), under the parameter names of torch's own.

The model asks a factory for its layers (model/layers.py); this is the factory for more than one tensor-parallel
rank, and the only place that touches megatron's tensor_parallel.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    reduce_from_tensor_model_parallel_region,
)
from torch import Tensor, nn

from m3ae_scale.kernels.linear import LinearFn, torch_linear
from m3ae_scale.kernels.linear_cross_entropy import LinearCrossEntropy, Part
from m3ae_scale.parallel.sequence import column_linear, join_rows, row_linear, split_rows
from m3ae_scale.parallel.shard import Shard, mark


class _Column(ColumnParallelLinear):
    """A column-parallel linear layer that returns its output alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _Row(RowParallelLinear):
    """A row-parallel linear layer that returns its output alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[0]


class _ColumnBy(ColumnParallelLinear):
    """The same by another backend than torch's (kernels/linear.py)."""

    def __init__(self, *args: Any, linear: LinearFn, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(copy_to_tensor_model_parallel_region(x, self.tp_group), self.weight, self.bias)


class _RowBy(RowParallelLinear):
    """The same by another backend than torch's (kernels/linear.py)."""

    def __init__(self, *args: Any, linear: LinearFn, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        part = self.linear(x, self.weight, None)
        return reduce_from_tensor_model_parallel_region(part, self.tp_group) + self.bias


class _ColumnOfParts(_ColumnBy):
    """The same on tokens of which each rank holds a part."""

    def forward(self, x: Tensor) -> Tensor:
        return column_linear(x, self.weight, self.bias, self.tp_group, self.linear)


class _RowOfParts(_RowBy):
    """The same on tokens of which each rank gets a part."""

    def forward(self, x: Tensor) -> Tensor:
        return row_linear(x, self.weight, self.bias, self.tp_group, self.linear)


class _VocabularyHead(_Column):
    """A column-parallel layer that can score its logits itself; see Layers.vocabulary_head."""

    def __init__(self, *args: Any, score: LinearCrossEntropy, part: Part, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.score, self.part = score, part

    def forward(self, x: Tensor, target: Tensor | None = None) -> Any:
        if target is None:
            return super().forward(x)
        return self.score(x, self.weight, self.bias, target, self.part)


def _initialised_elsewhere(weight: Tensor) -> None:
    # model/init.py draws every value, by name, so that no topology changes it.
    return None


class TensorParallelLayers:
    """The Layers factory (model/layers.py) for one rank of a tensor-parallel group.

    sequence: each rank holds a part of the tokens between the matrix products; see sequence.py.
    linear: the backend of the blocks' layers; torch's own is left to Megatron, which overlaps what it can.
    """

    def __init__(self, group: dist.ProcessGroup, sequence: bool = False, linear: LinearFn = torch_linear):
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.parts = self.size if sequence else 1
        self._vocabulary = 0
        config = ModelParallelConfig(
            tensor_model_parallel_size=self.size, use_cpu_initialization=True, perform_initialization=False
        )
        self._common: dict[str, Any] = {"config": config, "init_method": _initialised_elsewhere, "tp_group": group}
        self._column: Callable[..., ColumnParallelLinear] = _Column
        self._row: Callable[..., RowParallelLinear] = _Row
        if sequence:
            self._column = functools.partial(_ColumnOfParts, linear=linear)
            self._row = functools.partial(_RowOfParts, linear=linear)
        elif linear is not torch_linear:
            self._column = functools.partial(_ColumnBy, linear=linear)
            self._row = functools.partial(_RowBy, linear=linear)

    def column(self, inputs: int, outputs: int, blocks: int = 1) -> nn.Module:
        """See Layers."""
        layer = self._column(inputs, outputs, **self._common)
        mark(layer.weight, Shard(0, outputs, blocks))
        mark(layer.bias, Shard(0, outputs, blocks))
        return layer

    def row(self, inputs: int, outputs: int) -> nn.Module:
        """See Layers."""
        layer = self._row(inputs, outputs, bias=True, input_is_parallel=True, skip_bias_add=False, **self._common)
        mark(layer.weight, Shard(1, inputs))
        return layer

    def vocabulary_embedding(self, words: int, dim: int) -> nn.Module:
        """See Layers."""
        layer = VocabParallelEmbedding(self._padded(words), dim, **self._common)
        mark(layer.weight, Shard(0, words))
        return layer

    def vocabulary_head(self, dim: int, words: int, score: LinearCrossEntropy) -> nn.Module:
        """See Layers."""
        self._vocabulary = words
        padded = self._padded(words)
        part = Part(self.group, self.rank * (padded // self.size), words)
        layer = _VocabularyHead(dim, padded, score=score, part=part, **self._common)
        mark(layer.weight, Shard(0, words))
        mark(layer.bias, Shard(0, words))
        return layer

    def whole_logits(self, logits: Tensor) -> Tensor:
        """See Layers."""
        # Megatron's own gather asks for the current CUDA device, whatever the logits are on.
        parts = [torch.empty_like(logits) for _ in range(self.size)]
        dist.all_gather(parts, logits.contiguous(), group=self.group)
        return torch.cat(parts, dim=1)[:, : self._vocabulary]

    def split(self, x: Tensor) -> Tensor:
        """See Layers."""
        return split_rows(x, self.group) if self.parts > 1 else x

    def join(self, x: Tensor) -> Tensor:
        """See Layers."""
        return join_rows(x, self.group) if self.parts > 1 else x

    def first_channel(self, width: int) -> int:
        """See Layers."""
        return self.rank * (width // self.size)

    def _padded(self, words: int) -> int:
        return -(-words // self.size) * self.size
