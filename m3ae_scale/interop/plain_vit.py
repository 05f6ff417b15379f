"""The vision transformer of timm and Hugging Face, in plain torch: what an exported encoder is held against."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-6  # of LayerNorm


def plain_vit(weights: Mapping[str, Tensor], heads: int, images: Tensor, gelu: str = "tanh") -> Tensor:
    """Encode pictures with weights in timm's layout, after Dosovitskiy et al. 2021.

    images: (n, 3, H, W) normalised; gelu: "tanh", or "none" for the erf form -> (n, 1 + patches, dim), CLS first
    """
    kernel = weights["patch_embed.proj.weight"]
    x = F.conv2d(images, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([weights["cls_token"].expand(len(x), -1, -1), x], dim=1) + weights["pos_embed"]
    return plain_blocks(weights, "blocks", "norm", heads, x, gelu)


def plain_blocks(weights: Mapping[str, Tensor], blocks: str, norm: str, heads: int, x: Tensor, gelu: str) -> Tensor:
    """Apply pre-norm blocks and the LayerNorm after them. x: (n, tokens, dim) -> (n, tokens, dim)."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def layer_norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], EPSILON)

    number = 0
    while f"{blocks}.{number}.norm1.weight" in weights:
        block, (n, tokens, dim) = f"{blocks}.{number}", x.shape
        q, k, v = linear(f"{block}.attn.qkv", layer_norm(f"{block}.norm1", x)).view(n, tokens, 3, heads, -1).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        attention = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + linear(f"{block}.attn.proj", (attention @ v).transpose(1, 2).reshape(n, tokens, dim))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", layer_norm(f"{block}.norm2", x)), approximate=gelu)
        x = x + linear(f"{block}.mlp.fc2", hidden)
        number += 1
    return layer_norm(norm, x)
