"""Checkpoints: whole named tensors with one manifest, whatever the topology, ZeRO stage and precision of the run.

format     the manifest, and damage found by hash
files      one safetensors file, written as a stream and read as a memory map
folder     the checkpoints of a run: begun aside, published by one rename, found, pruned
plan       which rank writes which tensor
state      what this rank's engine holds of each parameter
routes     which rank sends what to the writer of a tensor
exchange   whole tensors out of what all ranks hold
save, load, weights, compare, export
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3ae_scale.engine.checkpoint.folder import SaveFailed, latest_checkpoint, prune_checkpoints
    from m3ae_scale.engine.checkpoint.load import load_checkpoint, load_latest
    from m3ae_scale.engine.checkpoint.save import BackgroundSave, save_checkpoint
    from m3ae_scale.engine.checkpoint.weights import read_weights

__all__ = [
    "BackgroundSave",
    "SaveFailed",
    "latest_checkpoint",
    "load_checkpoint",
    "load_latest",
    "prune_checkpoints",
    "read_weights",
    "save_checkpoint",
]

_MODULES = {  # the others: folder
    "BackgroundSave": "save",
    "load_checkpoint": "load",
    "load_latest": "load",
    "read_weights": "weights",
    "save_checkpoint": "save",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `m3ae-scale checkpoint ls` reads manifests without waiting for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'folder')}"), name)
