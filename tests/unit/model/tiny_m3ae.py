"""A model of a few thousand parameters, for tests."""

from typing import Any

import torch

from m3ae_scale.config import KernelConfig, ModelConfig
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import M3AE, PlainLayers
from m3ae_scale.model.init import draw

PATCH_DIM = 48


def tiny_model(**changes: Any) -> M3AE:
    config = ModelConfig.model_validate(
        {
            "encoder": {"dim": 32, "depth": 3, "heads": 4, "mlp_dim": 64},
            "decoder": {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32},
            "image_size": 16,
            "patch": 4,
            "text_length": 12,
            "unpaired_text_length": 20,
        }
        | changes
    )
    model = M3AE(config, 31, (0.5,) * 3, (0.25,) * 3, PlainLayers(), choose(KernelConfig(), "cpu", torch.float32))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(name, parameter.shape, 0))
    return model
