"""The parameter names and layouts of young-geng/m3ae_public (Flax), both ways.

Flax keeps a linear kernel as (in, out), ours as (out, in); CLS, mask and type embeddings are (1, 1, dim) there and
(dim,) here. Everything else is a matter of names.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

_FIXED = {
    "encoder.embed.text.weight": "text_embedding/embedding",
    "encoder.embed.cls_token": "cls_token",
    "encoder.embed.places.image_type": "encoder_image_type_embedding",
    "encoder.embed.places.text_type": "encoder_text_type_embedding",
    "decoder.embed.places.image_type": "decoder_image_type_embedding",
    "decoder.embed.places.text_type": "decoder_text_type_embedding",
    "decoder.embed.image_mask": "image_mask_embedding",
    "decoder.embed.text_mask": "text_mask_embedding",
}
_MODULES = [
    (r"encoder\.embed\.image", "image_embedding"),
    (r"decoder\.embed\.project", "decoder_input_projection"),
    (r"(encoder|decoder)\.transformer\.norm", r"\1/LayerNorm_0"),
    (r"(encoder|decoder)\.transformer\.blocks\.(\d+)\.norm1", r"\1/Block_\2/LayerNorm_0"),
    (r"(encoder|decoder)\.transformer\.blocks\.(\d+)\.norm2", r"\1/Block_\2/LayerNorm_1"),
    (r"(encoder|decoder)\.transformer\.blocks\.(\d+)\.attention\.qkv", r"\1/Block_\2/Attention_0/Dense_0"),
    (r"(encoder|decoder)\.transformer\.blocks\.(\d+)\.attention\.proj", r"\1/Block_\2/Attention_0/Dense_1"),
    (r"(encoder|decoder)\.transformer\.blocks\.(\d+)\.mlp\.(fc[12])", r"\1/Block_\2/TransformerMLP_0/\3"),
    (r"(image|text)_head\.hidden\.norm", r"decoder_\1_output/LayerNorm_0"),
    (r"(image|text)_head\.hidden\.linears\.(\d+)", r"decoder_\1_output/Dense_\2"),
]


def flax_path(name: str, head_depth: int = 0) -> str:
    """Translate our parameter name into its Flax path, for a model with `head_depth` hidden layers in its heads."""
    if name in _FIXED:
        return _FIXED[name]
    module, _, leaf = name.rpartition(".")
    if match := re.fullmatch(r"(image|text)_head\.output", module):
        path = f"decoder_{match[1]}_output/Dense_{head_depth}"
    elif match := re.fullmatch(r"(image|text)_head\.hidden\.norms\.(\d+)", module):
        path = f"decoder_{match[1]}_output/LayerNorm_{int(match[2]) + 1}"
    else:
        path = next((m.expand(to) for pattern, to in _MODULES if (m := re.fullmatch(pattern, module))), "")
    if not path:
        raise KeyError(f"{name} has no counterpart in m3ae_public")
    if leaf == "bias":
        return f"{path}/bias"
    return f"{path}/scale" if "LayerNorm" in path else f"{path}/kernel"


def from_flax(
    arrays: Mapping[str, NDArray[np.float32]], names: Iterable[str], head_depth: int = 0
) -> dict[str, NDArray[np.float32]]:
    """Take the parameters `names` out of `arrays` (Flax path -> value), in our layout; absent ones are left out."""
    found = {}
    for name in names:
        path = flax_path(name, head_depth)
        if path in arrays:
            value = arrays[path]
            if path.endswith("/kernel"):
                value = value.T
            found[name] = np.ascontiguousarray(value.reshape(-1) if value.shape[:2] == (1, 1) else value)
    return found


def to_flax(values: Mapping[str, NDArray[np.float32]], head_depth: int = 0) -> dict[str, NDArray[np.float32]]:
    """Translate our parameters into Flax path -> value: the other way from `from_flax`."""
    arrays = {}
    for name, value in values.items():
        path = flax_path(name, head_depth)
        if path.endswith("/kernel"):
            value = value.T
        elif "/" not in path:  # CLS, mask and type embeddings
            value = value.reshape(1, 1, -1)
        arrays[path] = np.ascontiguousarray(value)
    return arrays
