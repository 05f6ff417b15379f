"""Layer normalisation over the last dimension, eps 1e-6 as in Flax.

Backends
  torch  torch.nn.LayerNorm (anywhere)
  apex   apex.normalization.FusedLayerNorm (CUDA, NVIDIA apex built from source; the PyPI package is another one)
"""

from collections.abc import Callable
from importlib.util import find_spec

from torch import nn

EPS = 1e-6  # flax.linen.LayerNorm's default


def torch_layer_norm(dim: int) -> nn.Module:
    """Make a LayerNorm over `dim` with torch's kernel."""
    return nn.LayerNorm(dim, eps=EPS)


def apex_layer_norm(dim: int) -> nn.Module:
    """Make a LayerNorm over `dim` with apex's fused kernel."""
    from apex.normalization import FusedLayerNorm

    return FusedLayerNorm(dim, eps=EPS)


LayerNormFactory = Callable[[int], nn.Module]
BACKENDS: dict[str, LayerNormFactory] = {"apex": apex_layer_norm, "torch": torch_layer_norm}


def available(device: str) -> list[str]:
    """Name the backends that run on `device` ("cuda" or "cpu"), fastest first."""
    has_apex = find_spec("apex") is not None and find_spec("apex.normalization") is not None
    return ["apex", "torch"] if device == "cuda" and has_apex else ["torch"]
