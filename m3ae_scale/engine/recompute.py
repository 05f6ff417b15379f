"""Activation checkpointing, applied to a built model from outside: the model does not know.

Policies (engine.recompute)
  none       keep every activation
  full       keep each block's input, recompute the block in the backward pass
  every_n    as full, for one block in n
  selective  keep the outputs of matrix products, recompute the rest (norms, GELU, attention's padding moves)
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from m3ae_scale.model.transformer import Block

_PRODUCTS = ("mm", "addmm", "bmm", "_scaled_mm", "_scaled_mm_v2")  # the last two in 8 bits, each of some versions
_MATRIX_PRODUCTS = {getattr(torch.ops.aten, name).default for name in _PRODUCTS if hasattr(torch.ops.aten, name)}


def apply_recompute(model: nn.Module, policy: str) -> int:
    """Make the blocks of `model` recompute as `policy` says; returns how many do."""
    if policy == "none":
        return 0
    every = int(policy.removeprefix("every_")) if policy.startswith("every_") else 1
    blocks = [module for module in model.modules() if isinstance(module, Block)][::every]
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}  # dropping is stateless
    if policy == "selective":
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _keep_products)
    for block in blocks:
        forward: Callable[..., torch.Tensor] = block.forward
        # On the instance: module hooks (ZeRO-3's gather and release) stay outside of the recomputed part.
        block.forward = functools.partial(checkpoint, forward, **options)  # type: ignore[method-assign]
    return len(blocks)


def _keep_products(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keep = operation in _MATRIX_PRODUCTS
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE
