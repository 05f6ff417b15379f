"""The checkpoints of facebookresearch/mae (.pth, PyTorch): encoder, and decoder where there is one, read.

The layout is timm's ViT with a decoder beside it; a timm ViT of the same parts is read as well. Differences:
- its patch embedding is a convolution (dim, 3, patch, patch); ours takes a patch as (row, col, channel)
- positions are stored there; here they are a function, so they must be the sin-cos table, and CLS's is added to CLS
- a row that all positions have on top of the table is what we call the type embedding; in MAE it is 0
- GELU is the erf form there, the tanh form here
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m3ae_scale.errors import InputError
from m3ae_scale.interop.found import IMAGENET, Found, blocks_in, published_heads
from m3ae_scale.model.positions import sincos_2d

_TOLERANCE = 1e-4  # of a stored position: theirs were computed in float32 by another library

_FIXED = {
    "norm": "encoder.transformer.norm",
    "decoder_embed": "decoder.embed.project",
    "decoder_norm": "decoder.transformer.norm",
    "decoder_pred": "image_head.output",
}
_BLOCK = re.compile(r"(decoder_)?blocks\.(\d+)\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)")


def read_mae(path: Path) -> Found:
    """Read the .pth at `path`. Raises InputError for another layout, or positions that are not the sin-cos table."""
    arrays, told = _load(path)
    if "patch_embed.proj.weight" not in arrays or "cls_token" not in arrays or "pos_embed" not in arrays:
        names = ", ".join(list(arrays)[:4])
        raise InputError(
            f"{path}: found {names or 'no tensor'}, expected cls_token, pos_embed and patch_embed.proj.weight: the "
            "layout of facebookresearch/mae"
        )
    values: dict[str, np.ndarray] = {}
    unused = []
    for name, array in arrays.items():
        ours = our_name(name)
        if ours is not None:
            values[ours] = array
        elif name not in ("cls_token", "pos_embed", "mask_token", "decoder_pos_embed", "patch_embed.proj.weight"):
            unused.append(name)
    convolution = arrays["patch_embed.proj.weight"]
    if convolution.ndim != 4 or convolution.shape[1] != 3 or convolution.shape[2] != convolution.shape[3]:
        raise InputError(f"{path}: patch_embed.proj.weight is {convolution.shape}, expected (dim, 3, patch, patch)")
    values["encoder.embed.image.weight"] = patch_matrix(convolution)
    grid = _places(path, arrays, values)
    normalised_patches = bool(getattr(told.get("args"), "norm_pix_loss", False))
    return Found(
        path=path,
        kind="MAE",
        values={name: np.ascontiguousarray(value) for name, value in values.items()},
        model=_model(arrays, grid),
        unused=tuple(unused),
        pixels=IMAGENET,
        channel_pixels=not normalised_patches,
        grid=grid,
        notes=(
            "trained with the erf form of GELU, here it is the tanh form",
            *(["its image head predicts pixels normalised per patch"] if normalised_patches else []),
        ),
    )


def our_name(name: str) -> str | None:
    """Translate a name of MAE's (or timm's ViT) into ours; None for what is no plain copy."""
    module, _, leaf = name.rpartition(".")
    if match := _BLOCK.fullmatch(module):
        tower = "decoder" if match[1] else "encoder"
        return f"{tower}.transformer.blocks.{match[2]}.{match[3].replace('attn', 'attention')}.{leaf}"
    if name == "patch_embed.proj.bias":
        return "encoder.embed.image.bias"
    return f"{_FIXED[module]}.{leaf}" if module in _FIXED else None


def patch_matrix(convolution: np.ndarray) -> np.ndarray:
    """Turn the kernel (dim, 3, row, col) into the matrix (dim, row x col x channel)."""
    return np.ascontiguousarray(convolution.transpose(0, 2, 3, 1).reshape(len(convolution), -1))


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    try:
        # A training checkpoint of MAE's holds its command line; a Namespace has no code of its own.
        with torch.serialization.safe_globals([argparse.Namespace]):
            top = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise InputError(f"{path}: refused, not loadable as plain weights ({what}); fetch the file again") from None
    told = top if isinstance(top, dict) else {}
    state = told.get("model", told)
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: `model` is a {type(state).__name__}, expected a dict of tensors")
    arrays = {
        name: value.float().numpy()
        for name, value in state.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.is_floating_point()
    }
    return arrays, told


def _places(path: Path, arrays: Mapping[str, np.ndarray], values: dict[str, np.ndarray]) -> int:
    """Split the stored positions of both towers into the table, the type embedding and CLS; returns the grid."""
    cls_place, values["encoder.embed.places.image_type"], grid = _split(path, "pos_embed", arrays["pos_embed"])
    values["encoder.embed.cls_token"] = arrays["cls_token"].reshape(-1) + cls_place
    if "mask_token" in arrays and "decoder_pos_embed" in arrays:
        values["decoder.embed.image_mask"] = arrays["mask_token"].reshape(-1)
        cls_place, type_row, other = _split(path, "decoder_pos_embed", arrays["decoder_pos_embed"])
        if np.abs(cls_place).max() > _TOLERANCE or other != grid:
            raise InputError(f"{path}: decoder_pos_embed gives CLS a position or has another grid; here CLS has none")
        values["decoder.embed.places.image_type"] = type_row
    return grid


def _split(path: Path, name: str, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    rows = stored.reshape(-1, stored.shape[-1]).astype(np.float64)
    grid = round((len(rows) - 1) ** 0.5)
    if grid**2 + 1 != len(rows):
        raise InputError(f"{path}: {name} has {len(rows)} rows, expected CLS and a square of patches")
    rest = rows[1:] - sincos_2d(rows.shape[1], grid).numpy()
    type_row = rest.mean(0)
    off = np.abs(rest - type_row).max()
    if off > _TOLERANCE:
        raise InputError(
            f"{path}: {name} is off the sin-cos table by {off:.2g}; positions are fixed here, so a model that learned "
            "its own (as fine-tuning does) cannot be read"
        )
    if np.abs(type_row).max() <= _TOLERANCE:
        type_row = np.zeros_like(type_row)
    return rows[0].astype(np.float32), type_row.astype(np.float32), grid


def _model(arrays: Mapping[str, np.ndarray], grid: int) -> dict[str, Any]:
    dim, _, patch, _ = arrays["patch_embed.proj.weight"].shape
    model: dict[str, Any] = {
        "encoder": _tower(arrays, "blocks", dim),
        "image_size": grid * patch,
        "patch": patch,
        "output_head_depth": 0,
        "type_embedding": True,
    }
    if "mask_token" in arrays:
        model["decoder"] = _tower(arrays, "decoder_blocks", arrays["mask_token"].shape[-1])
    return model


def _tower(arrays: Mapping[str, np.ndarray], blocks: str, dim: int) -> dict[str, int]:
    mlp = arrays.get(f"{blocks}.0.mlp.fc1.weight", np.empty((4 * dim, dim)))
    tower = {"dim": dim, "depth": blocks_in(arrays, rf"{blocks}\.(\d+)\."), "mlp_dim": len(mlp)}
    heads = published_heads(dim)  # no shape shows them
    return tower if heads is None else tower | {"heads": heads}
