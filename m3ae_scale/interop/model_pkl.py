"""The checkpoints of young-geng/m3ae_public, `model.pkl`: read without JAX and without running what they hold; written.

Such a file is a pickled dict {step, epoch, variant, state}: `variant` are the flags of the run (m3ae.* or mae.* the
model's), `state` is an m3ae.model.M3AETrainState whose `params["params"]` are the parameters.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from m3ae_scale.config import Experiment, ModelConfig
from m3ae_scale.errors import InputError
from m3ae_scale.interop.found import CC12M, IMAGENET, Found, blocks_in, published_heads
from m3ae_scale.interop.m3ae_public import flax_path, from_flax, to_flax
from m3ae_scale.interop.pickled_arrays import as_array, as_dict, write_pickle
from m3ae_scale.interop.pickles import Made, Name, read_pickle
from m3ae_scale.interop.shapes import parameter_shapes
from m3ae_scale.model.pixels import Channels

_SIZES = {
    "small": (6, 16),
    "base": (12, 16),
    "large": (16, 16),
    "huge": (16, 16),
    "debug": (16, 16),
}  # model_type: heads
_NORMALISATIONS = {"imagenet": IMAGENET, "cc12m": CC12M, "none": ((0.0,) * 3, (1.0,) * 3)}
_DEEPEST, _MOST = 12, 100_000  # of the tree of parameters: an honest one has 5 levels and some hundred leaves


def read_model_pkl(path: Path) -> Found:
    """Read the parameters of the `model.pkl` at `path`; the optimizer's state is left alone.

    Raises InputError for a file that is no such checkpoint, or that holds what no checkpoint needs.
    """
    top = as_dict(read_pickle(path)) or {}
    state = top.get("state")
    fields = as_dict(state.state if isinstance(state, Made) else state) or {}
    tree = as_dict(fields.get("params")) or {}
    arrays: dict[str, np.ndarray] = {}
    _flatten(path, as_dict(tree.get("params")) or tree, "", arrays)
    if "cls_token" not in arrays or "image_embedding/kernel" not in arrays:
        found = ", ".join(map(str, list(top)[:5])) or "no dict"
        raise InputError(
            f"{path}: found {found}, expected a checkpoint of m3ae_public: step, epoch, variant, and a state whose "
            "params hold cls_token and image_embedding"
        )
    variant = {key: value for key, value in (as_dict(top.get("variant")) or {}).items() if isinstance(key, str)}
    model = _model(path, arrays, variant)
    words = arrays["text_embedding/embedding"].shape[0] if "text_embedding/embedding" in arrays else 1
    try:
        shapes = parameter_shapes(ModelConfig.model_validate(model), words)
    except ValueError as error:
        raise InputError(f"{path}: its parameters make no model: {' '.join(str(error).split())[:200]}") from None
    values = from_flax(arrays, shapes, model["output_head_depth"])
    _check_shapes(path, values, shapes)
    used = {flax_path(name, model["output_head_depth"]) for name in values}
    step = as_array(top.get("step"))
    return Found(
        path=path,
        kind="m3ae_public",
        values=values,
        model=model,
        unused=tuple(sorted(set(arrays) - used)),
        step=int(step) if step is not None and step.ndim == 0 else None,
        pixels=_pixels(variant),
    )


def write_model_pkl(values: Mapping[str, np.ndarray], experiment: Experiment, step: int, output: Path) -> None:
    """Write our parameters as a `model.pkl` that m3ae_public's fine-tuning and linear probe load.

    The optimizer is not in it: `tx` is None, so the official code cannot go on training with `load_checkpoint`.
    Raises InputError for a model that the official code cannot build.
    """
    model = experiment.model
    ratios = {tower.mlp_dim / tower.dim for tower in (model.encoder, model.decoder)}
    if len(ratios) > 1 or not next(iter(ratios)).is_integer():
        raise InputError(
            f"{output}: m3ae_public has one whole mlp_ratio, this model's are {sorted(ratios)}; choose another format"
        )
    tree: dict[str, Any] = {}
    for path, array in to_flax(values, model.output_head_depth).items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = array
    fields = {
        "step": step,
        "apply_fn": None,
        "params": {"params": tree},
        "tx": None,
        "opt_state": (),
        "tokenizer_params": None,
    }
    state = Made(Name("m3ae.model", "M3AETrainState"), (), fields)
    with open(output, "wb") as file:
        write_pickle({"step": step, "epoch": 0, "variant": _variant(experiment), "state": state}, file)


def _flatten(path: Path, tree: Mapping[Any, Any], prefix: str, into: dict[str, np.ndarray]) -> None:
    for key, value in tree.items():
        inner, array = as_dict(value), as_array(value)
        if inner is not None and prefix.count("/") < _DEEPEST and len(into) < _MOST:
            _flatten(path, inner, f"{prefix}{key}/", into)
        elif array is not None and array.dtype.kind == "f" and len(into) < _MOST:
            into[f"{prefix}{key}"] = array.astype(np.float32, copy=False)
        else:
            raise InputError(f"{path}: {prefix}{key} is no array of floating-point numbers that could be read")


def _model(path: Path, arrays: Mapping[str, np.ndarray], variant: Mapping[str, Any]) -> dict[str, Any]:
    """The section `model`: widths and depths from the shapes, heads and image size from the flags."""

    def flag(name: str, otherwise: Any) -> Any:
        for prefix in ("m3ae", "mae"):
            if (value := variant.get(f"{prefix}.{name}")) is not None:
                return value
        return otherwise

    try:
        dims = arrays["cls_token"].shape[-1], arrays["image_mask_embedding"].shape[-1]
        widths = [arrays[f"{t}/Block_0/TransformerMLP_0/fc1/bias"].shape[0] for t in ("encoder", "decoder")]
        inputs = arrays["image_embedding/kernel"].shape[0]
        depth = blocks_in(arrays, r"decoder_image_output/Dense_(\d+)/") - 1
        outputs = arrays[f"decoder_image_output/Dense_{depth}/bias"].shape[0]
    except KeyError as missing:
        raise InputError(f"{path}: has no {missing}; expected the parameters of an M3AE or a MAE") from None
    heads = _SIZES.get(str(flag("model_type", None))) or (
        flag("num_heads", published_heads(dims[0]) or 1),  # 1: no flag tells, and no shape shows it
        flag("dec_num_heads", published_heads(dims[1]) or 1),
    )
    text_length = variant.get("data.tokenizer_max_length")
    return {
        **{
            tower: {"dim": dim, "depth": blocks_in(arrays, rf"{tower}/Block_(\d+)/"), "heads": head, "mlp_dim": width}
            for tower, dim, head, width in zip(("encoder", "decoder"), dims, heads, widths, strict=True)
        },
        "image_size": variant.get("data.image_size") or 256,
        "patch": round((inputs / 3) ** 0.5),
        "text_length": text_length if isinstance(text_length, int) else 64,
        "output_head_depth": depth,
        "type_embedding": "encoder_image_type_embedding" in arrays,
        "image_codebook": outputs if variant.get("discretized_image") else 0,
    }


def _check_shapes(path: Path, values: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, value in values.items():
        if value.shape != shapes[name]:
            raise InputError(f"{path}: its {name} is {value.shape}, its other parameters need {shapes[name]}")


def _pixels(variant: Mapping[str, Any]) -> tuple[Channels, Channels] | None:
    kind = variant.get("data.image_normalization")
    if kind != "custom":
        return _NORMALISATIONS.get(kind) if isinstance(kind, str) else None
    try:
        mean, std = (
            tuple(float(part) for part in str(variant.get(f"data.custom_image_{name}")).split("-"))
            for name in ("mean", "std")
        )
    except ValueError:
        return None
    return (mean, std) if len(mean) == len(std) == 3 else None


def _variant(experiment: Experiment) -> dict[str, Any]:
    """The flags under which m3ae_public would have trained this model; it asks a checkpoint for none of them."""
    model, augment = experiment.model, experiment.data.augment
    pixels = (augment.mean, augment.std)
    known = next((name for name, values in _NORMALISATIONS.items() if values == pixels), "custom")
    return {
        "seed": experiment.seed,
        "batch_size": experiment.batch.global_,
        "patch_size": model.patch,
        "discretized_image": model.image_codebook > 0,
        "image_loss_weight": experiment.loss.image,
        "text_loss_weight": experiment.loss.text,
        "unpaired_text_loss_weight": experiment.loss.unpaired_text,
        "m3ae.model_type": None,
        "m3ae.emb_dim": model.encoder.dim,
        "m3ae.dec_emb_dim": model.decoder.dim,
        "m3ae.depth": model.encoder.depth,
        "m3ae.dec_depth": model.decoder.depth,
        "m3ae.num_heads": model.encoder.heads,
        "m3ae.dec_num_heads": model.decoder.heads,
        "m3ae.mlp_ratio": model.encoder.mlp_dim // model.encoder.dim,
        "m3ae.output_head_depth": model.output_head_depth,
        "m3ae.drop": model.dropout,
        "m3ae.drop_path": model.drop_path,
        "m3ae.image_mask_ratio": experiment.mask.image_ratio,
        "m3ae.text_mask_ratio": experiment.mask.text_ratio,
        "m3ae.use_type_embedding": model.type_embedding,
        "data.image_size": model.image_size,
        "data.tokenizer_max_length": model.text_length,
        "data.image_normalization": known,
        "data.custom_image_mean": "-".join(map(str, augment.mean)),
        "data.custom_image_std": "-".join(map(str, augment.std)),
    }
