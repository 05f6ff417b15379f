"""Named model sizes, from tiny to 22b, and their parameter counts in closed form."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """One transformer: width `dim`, `depth` blocks, `heads` attention heads, feed-forward width `mlp_dim`."""

    dim: int
    depth: int
    heads: int
    mlp_dim: int


@dataclass(frozen=True)
class Size:
    """An encoder with its decoder; `source` says where the shape was published."""

    encoder: Tower
    decoder: Tower
    source: str


# Every published M3AE uses this decoder (Geng et al. 2022, as in MAE).
_DECODER = Tower(dim=512, depth=8, heads=16, mlp_dim=2048)
_REFERENCE = "m3ae_public, get_transformer_by_config"
_SCALING_VITS = "Zhai et al. 2022, Scaling Vision Transformers, table 2"

SIZES: dict[str, Size] = {
    "tiny": Size(Tower(128, 4, 4, 512), Tower(64, 2, 4, 256), "ours: for two CPU cores"),
    "small": Size(Tower(384, 12, 6, 1536), _DECODER, _REFERENCE),
    "base": Size(Tower(768, 12, 12, 3072), _DECODER, _REFERENCE),
    "large": Size(Tower(1024, 24, 16, 4096), _DECODER, _REFERENCE),
    "huge": Size(Tower(1280, 32, 16, 5120), _DECODER, _REFERENCE),
    "g": Size(Tower(1408, 40, 16, 6144), _DECODER, _SCALING_VITS),
    "G": Size(Tower(1664, 48, 16, 8192), _DECODER, _SCALING_VITS),
    "e": Size(Tower(1792, 56, 16, 15360), _DECODER, "Chen et al. 2022, PaLI, table 1"),
    "6b": Size(Tower(4096, 32, 32, 16384), _DECODER, "ours: 10b with fewer blocks, for one GPU of 141 GB"),
    "10b": Size(Tower(4096, 48, 32, 16384), _DECODER, "ours: between e and 22b, heads of 128"),
    "22b": Size(Tower(6144, 48, 48, 24576), _DECODER, "Dehghani et al. 2023, ViT-22B, table 1"),
}


def tower_parameters(tower: Tower) -> int:
    """Parameters of the blocks and the final LayerNorm of `tower`."""
    d, m = tower.dim, tower.mlp_dim
    attention = (d * 3 * d + 3 * d) + (d * d + d)
    mlp = (d * m + m) + (m * d + d)
    layer_norms = 2 * 2 * d
    return tower.depth * (attention + mlp + layer_norms) + 2 * d


def head_parameters(dim: int, outputs: int, depth: int) -> int:
    """Parameters of an output head: one linear layer, or `depth` hidden layers with LayerNorms before it."""
    hidden = depth * (dim * dim + dim + 2 * dim)
    input_norm = 2 * dim if depth > 0 else 0
    return input_norm + hidden + dim * outputs + outputs


def model_parameters(
    encoder: Tower,
    decoder: Tower,
    vocabulary: int = 30522,
    patch_dim: int = 768,
    head_depth: int = 0,
    type_embedding: bool = True,
) -> int:
    """Parameters of the whole autoencoder; the defaults are BERT's vocabulary and patches of 16 x 16 x 3."""
    d, e = encoder.dim, decoder.dim
    types = 2 if type_embedding else 0  # one a modality, in both towers
    encoder_embedding = (patch_dim * d + d) + vocabulary * d + d + types * d  # patches, words, CLS
    decoder_embedding = (d * e + e) + 2 * e + types * e  # projection, the mask token of each modality
    heads = head_parameters(e, patch_dim, head_depth) + head_parameters(e, vocabulary, head_depth)
    return encoder_embedding + tower_parameters(encoder) + decoder_embedding + tower_parameters(decoder) + heads
