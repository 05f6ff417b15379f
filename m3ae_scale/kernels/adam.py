"""AdamW, and which implementation runs it.

Backends
  torch          torch.optim.AdamW, fused (anywhere)
  apex           apex.optimizers.FusedAdam (CUDA, NVIDIA apex built from source)
  deepspeed_cpu  DeepSpeedCPUAdam, compiled with g++ on first use: the one for an optimizer offloaded to the host
"""

from importlib.util import find_spec
from typing import Any

import torch

from m3ae_scale.config import OptimizerConfig

BACKENDS = ("torch", "apex", "deepspeed_cpu")


def available(device: str, offloaded: bool) -> list[str]:
    """Name the backends for optimizer states on `device`, fastest first; `offloaded` states live on the host."""
    if offloaded:
        return ["deepspeed_cpu"]
    has_apex = device == "cuda" and find_spec("apex") is not None and find_spec("apex.optimizers") is not None
    return ["apex", "torch"] if has_apex else ["torch"]


def build_adam(name: str, groups: list[dict[str, Any]], config: OptimizerConfig, lr: float) -> torch.optim.Optimizer:
    """Make the optimizer over parameter `groups` (each with its weight_decay), at peak rate `lr`."""
    if name == "deepspeed_cpu":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=lr, betas=config.betas, eps=config.eps, adamw_mode=True)
    if name == "apex":
        from apex.optimizers import FusedAdam

        return FusedAdam(groups, lr=lr, betas=config.betas, eps=config.eps, adam_w_mode=True)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=True)
