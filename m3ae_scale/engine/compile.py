"""torch.compile of the transformer blocks, applied to a built model from outside: the model does not know.

All blocks of a tower share one graph, and sizes are open from the start: packed batches differ in tokens, samples and
longest sample at every step. What is gained is fusion around the matrix products: LayerNorm, bias and GELU, residual.
"""

from typing import Any

import torch
from torch import nn

from m3ae_scale.engine.quick_deepspeed import deepspeed
from m3ae_scale.model.transformer import Block

# Graphs of one block: samples of one length or of several, one sample or many. Blocks that drop values are told apart
# by their place; else all blocks of a tower share theirs.
_GRAPHS = 4


def apply_compile(model: nn.Module, policy: str, stage: int, backend: str = "inductor") -> int:
    """Compile the blocks of `model` as kernels.compile says; returns how many are.

    At ZeRO stage 3 each block's parameters are then gathered and released as a whole, since the hooks that do it cannot
    run inside a compiled block.
    """
    if policy == "none":
        return 0
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS * len(blocks))
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=True, backend=backend)  # type: ignore[method-assign]
    if stage == 3:
        deepspeed.utils.set_z3_leaf_modules(model, [Block])
    return len(blocks)


def without_patched_linear(config: dict[str, Any]) -> dict[str, Any]:
    """Return the DeepSpeed config with torch's own linear function: ZeRO-3's stand-in for it cannot be compiled."""
    zero = {**config.get("zero_optimization", {}), "memory_efficient_linear": False}
    return {**config, "zero_optimization": zero}
