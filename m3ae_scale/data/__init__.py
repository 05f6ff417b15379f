"""Tar shards in, packed micro-batches out. The way: index -> order -> deal -> supply -> pack -> hand-off."""

from m3ae_scale.data.cursor import Cursor
from m3ae_scale.data.index import IndexedSource, index_shards, index_source
from m3ae_scale.data.loader import (
    TrainingData,
    ValidationData,
    open_training,
    open_validation,
    preflight,
    tokens_per_sample,
)

__all__ = [
    "Cursor",
    "IndexedSource",
    "TrainingData",
    "ValidationData",
    "index_shards",
    "index_source",
    "open_training",
    "open_validation",
    "preflight",
    "tokens_per_sample",
]
