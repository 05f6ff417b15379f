"""Picks a backend for each operation; an explicit choice never degrades silently."""

from dataclasses import dataclass

import torch

from m3ae_scale.config import KernelConfig
from m3ae_scale.errors import InputError
from m3ae_scale.kernels import adam, attention, layer_norm, linear, linear_cross_entropy


@dataclass(frozen=True)
class Kernels:
    """The chosen backends, by name for the log and as the callables that the model uses."""

    attention_name: str
    layer_norm_name: str
    linear_name: str
    adam_name: str
    text_loss_name: str

    @property
    def attention(self) -> attention.AttentionFn:
        """The attention over packed tokens."""
        return attention.BACKENDS[self.attention_name]

    @property
    def layer_norm(self) -> layer_norm.LayerNormFactory:
        """The maker of LayerNorm modules."""
        return layer_norm.BACKENDS[self.layer_norm_name]

    @property
    def linear(self) -> linear.LinearFn:
        """The linear layers of the blocks."""
        return linear.BACKENDS[self.linear_name]

    @property
    def text_loss(self) -> linear_cross_entropy.LinearCrossEntropy:
        """The text head's last layer with its cross-entropy."""
        return linear_cross_entropy.BACKENDS[self.text_loss_name]

    def __str__(self) -> str:
        names = f"attention {self.attention_name}, layer_norm {self.layer_norm_name}, linear {self.linear_name}"
        return f"{names}, text_loss {self.text_loss_name}, adam {self.adam_name}"


def choose(
    config: KernelConfig, device: str, dtype: torch.dtype, offloaded: bool = False, split: bool = False
) -> Kernels:
    """Resolve `auto` to the fastest available backend, and check explicit names.

    device: "cuda" or "cpu"; offloaded: optimizer states live on the host; split: the model is tensor-parallel.
    Raises InputError when a named backend is unknown or cannot run here.
    """
    return Kernels(
        _pick("attention", config.attention, attention.available(device, dtype), list(attention.BACKENDS)),
        _pick("layer_norm", config.layer_norm, layer_norm.available(device), list(layer_norm.BACKENDS)),
        _pick("linear", config.linear, linear.available(device, dtype), list(linear.BACKENDS)),
        _pick("adam", config.adam, adam.available(device, offloaded), list(adam.BACKENDS)),
        _pick(
            "text_loss",
            config.text_loss,
            linear_cross_entropy.available(device, split),
            list(linear_cross_entropy.BACKENDS),
        ),
    )


def _pick(operation: str, wanted: str, runnable: list[str], known: list[str]) -> str:
    if wanted == "auto":
        return runnable[0]
    if wanted in runnable:
        return wanted
    state = "cannot run here (hardware, precision or a missing package)" if wanted in known else "is unknown"
    raise InputError(f"kernels.{operation}: {wanted!r} {state}; choose auto or one of {', '.join(runnable)}")
