"""The encoder as a plain vision transformer: the layouts of timm and of Hugging Face's ViT and ViTMAE.

What a ViT has no place for goes where it has the same effect: fixed positions and the image's type embedding become
the stored position table (0 for CLS, which has neither), and the patch matrix becomes a convolution's kernel. Words
stay behind. GELU is the tanh form and LayerNorm's epsilon 1e-6; the configuration that is written says so.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from m3ae_scale.config import Experiment, KernelConfig, LossConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.interop.plain_vit import EPSILON, plain_vit
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import Encoder, PlainLayers
from m3ae_scale.model.positions import sincos_2d

Arrays = dict[str, np.ndarray]

_TOWERS = {"encoder": ("blocks", "norm"), "decoder": ("decoder_blocks", "decoder_norm")}
_HUGGING_FACE = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}


def mae_layout(values: Mapping[str, np.ndarray], experiment: Experiment, decoder: bool = False) -> Arrays:
    """Lay the encoder, and with `decoder` the image part of the decoder, out as facebookresearch/mae and timm do."""
    model = experiment.model
    matrix = values["encoder.embed.image.weight"]
    kernel = matrix.reshape(len(matrix), model.patch, model.patch, 3).transpose(0, 3, 1, 2)
    arrays = {
        "cls_token": values["encoder.embed.cls_token"].reshape(1, 1, -1),
        "pos_embed": _places(values, "encoder", model.encoder.dim, model.grid),
        "patch_embed.proj.weight": np.ascontiguousarray(kernel),
        "patch_embed.proj.bias": values["encoder.embed.image.bias"],
        **_tower(values, "encoder"),
    }
    if decoder:
        arrays |= {
            "mask_token": values["decoder.embed.image_mask"].reshape(1, 1, -1),
            "decoder_pos_embed": _places(values, "decoder", model.decoder.dim, model.grid),
            **_tower(values, "decoder"),
        }
        for ours, theirs in (("decoder.embed.project", "decoder_embed"), ("image_head.output", "decoder_pred")):
            arrays |= {f"{theirs}.{leaf}": values[f"{ours}.{leaf}"] for leaf in ("weight", "bias")}
    return arrays


def hugging_face_layout(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Rename MAE's layout to that of ViTModel, or with a decoder to that of ViTMAEForPreTraining; q, k and v apart."""
    prefix = "vit." if "mask_token" in arrays else ""
    renamed: Arrays = {}
    for name, array in arrays.items():
        if match := re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", name):
            place = "decoder.decoder_layers" if match[1] else f"{prefix}encoder.layer"
            block, module, leaf = f"{place}.{match[2]}", match[3], match[4]
            if module == "attn.qkv":
                for part, values in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                    renamed[f"{block}.attention.attention.{part}.{leaf}"] = values
            else:
                renamed[f"{block}.{_HUGGING_FACE[module]}.{leaf}"] = array
        elif name.startswith(("decoder_", "mask_token")):
            renamed[f"decoder.{name}"] = array
        elif name.startswith("norm."):
            renamed[f"{prefix}layer{name}"] = array
        else:
            name = name.replace("pos_embed", "position_embeddings")
            renamed[f"{prefix}embeddings.{name.replace('patch_embed.proj', 'patch_embeddings.projection')}"] = array
    return {name: np.ascontiguousarray(array) for name, array in renamed.items()}


def timm_config(experiment: Experiment) -> dict[str, Any]:
    """The config.json with which `timm.create_model("local-dir:...")` builds the encoder."""
    model, augment, tower = experiment.model, experiment.data.augment, experiment.model.encoder
    return {
        "architecture": "vit_base_patch16_224",  # every size below replaces its own
        "num_classes": 0,
        "num_features": tower.dim,
        "global_pool": "token",
        "model_args": {
            "img_size": model.image_size,
            "patch_size": model.patch,
            "embed_dim": tower.dim,
            "depth": tower.depth,
            "num_heads": tower.heads,
            "mlp_ratio": tower.mlp_dim / tower.dim,
            "act_layer": "gelu_tanh",
        },
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, model.image_size, model.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(augment.mean),
            "std": list(augment.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def hugging_face_config(experiment: Experiment, decoder: bool) -> dict[str, Any]:
    """The config.json of ViTModel, or with `decoder` of ViTMAEForPreTraining."""
    model, tower = experiment.model, experiment.model.encoder
    config = {
        "architectures": ["ViTMAEForPreTraining" if decoder else "ViTModel"],
        "model_type": "vit_mae" if decoder else "vit",
        "hidden_size": tower.dim,
        "num_hidden_layers": tower.depth,
        "num_attention_heads": tower.heads,
        "intermediate_size": tower.mlp_dim,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": EPSILON,
        "image_size": model.image_size,
        "patch_size": model.patch,
        "num_channels": 3,
        "qkv_bias": True,
    }
    if not decoder:
        return config
    return config | {
        "decoder_hidden_size": model.decoder.dim,
        "decoder_num_hidden_layers": model.decoder.depth,
        "decoder_num_attention_heads": model.decoder.heads,
        "decoder_intermediate_size": model.decoder.mlp_dim,
        "mask_ratio": experiment.mask.image_ratio,
        "norm_pix_loss": False,
    }


def hugging_face_preprocessing(experiment: Experiment) -> dict[str, Any]:
    """The preprocessor_config.json: resize the short side, cut the centre, normalise."""
    size, augment = experiment.model.image_size, experiment.data.augment
    return {
        "image_processor_type": "CLIPImageProcessor",  # ViT's own does not crop
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(augment.mean),
        "image_std": list(augment.std),
    }


@torch.no_grad()
def export_error(values: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], experiment: Experiment) -> float:
    """Return how far a plain ViT with `arrays` (MAE's layout) is from our encoder on two random pictures.

    The largest difference of any feature, relative to the largest feature.
    """
    model, augment = experiment.model, experiment.data.augment
    kernels = choose(KernelConfig(attention="reference"), "cpu", torch.float32)
    words = len(values["encoder.embed.text.weight"])
    encoder = Encoder(model, words, augment.mean, augment.std, PlainLayers(), kernels).eval()
    encoder.load_state_dict(
        {name.removeprefix("encoder."): torch.tensor(v) for name, v in values.items() if name.startswith("encoder.")}
    )
    patches = np.random.default_rng(0).standard_normal((2, model.patches, model.patch_dim)).astype(np.float32)
    seen = np.ones(model.patches, bool)
    batch = pack([Sample(str(i), p, None, seen, None, i) for i, p in enumerate(patches)], LossConfig(), model.patch_dim)
    ours = encoder(batch).view(2, 1 + model.patches, -1)
    grid = patches.reshape(2, model.grid, model.grid, model.patch, model.patch, 3)
    images = grid.transpose(0, 5, 1, 3, 2, 4).reshape(2, 3, model.image_size, model.image_size)
    weights = {name: torch.tensor(array) for name, array in arrays.items()}
    theirs = plain_vit(weights, model.encoder.heads, torch.tensor(images))
    return float((ours - theirs).abs().max() / ours.abs().max())


def _places(values: Mapping[str, np.ndarray], tower: str, dim: int, grid: int) -> np.ndarray:
    table = sincos_2d(dim, grid).numpy() + values.get(f"{tower}.embed.places.image_type", np.zeros(dim))
    return np.concatenate([np.zeros((1, dim)), table]).astype(np.float32)[None]


def _tower(values: Mapping[str, np.ndarray], tower: str) -> Arrays:
    blocks, norm = _TOWERS[tower]
    arrays: Arrays = {}
    for name, value in values.items():
        rest = name.removeprefix(f"{tower}.transformer.")
        if rest != name:
            rest = rest.replace("attention", "attn").replace("blocks.", f"{blocks}.")
            arrays[f"{norm}{rest.removeprefix('norm')}" if rest.startswith("norm.") else rest] = value
    return arrays
