"""A small experiment and its model with drawn values, for moving weights in and out."""

from typing import Any

import numpy as np
import torch

from m3ae_scale.config import Experiment, KernelConfig
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import M3AE, PlainLayers
from m3ae_scale.model.init import draw

VOCABULARY = 31


def experiment(**model: Any) -> Experiment:
    """Towers of 3 and 2 blocks on 16 patches; `model` replaces keys of the section model."""
    return Experiment.model_validate(
        {
            "name": "tiny",
            "model": {
                "encoder": {"dim": 32, "depth": 3, "heads": 4, "mlp_dim": 64},
                "decoder": {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32},
                "image_size": 16,
                "patch": 4,
                "text_length": 12,
                "unpaired_text_length": 20,
            }
            | model,
            "data": {"sources": [{"name": "a", "shards": "none"}], "tokenizer": "none"},
            "batch": {"global": 4},
            "train": {"length": "1 steps"},
            "engine": {"deepspeed": "none"},
        }
    )


def drawn_model(experiment: Experiment, seed: int = 0) -> M3AE:
    """Its biases and LayerNorms are drawn too: at 0 and 1 a mistake in them would not show."""
    augment = experiment.data.augment
    kernels = choose(KernelConfig(), "cpu", torch.float32)
    model = M3AE(experiment.model, VOCABULARY, augment.mean, augment.std, PlainLayers(), kernels).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(name, parameter.shape, seed))
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def values_of(model: M3AE) -> dict[str, np.ndarray]:
    """Its parameters by name."""
    return {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
