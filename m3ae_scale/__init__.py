"""m3ae_scale: the Multimodal Masked Autoencoder (Geng et al. 2022), trained at scale."""

from typing import Any

from m3ae_scale.version import __version__

__all__ = ["__version__", "load_encoder"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that `m3ae-scale --help` does not wait for torch."""
    if name == "load_encoder":
        from m3ae_scale.evaluation.encode import load_encoder

        return load_encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
