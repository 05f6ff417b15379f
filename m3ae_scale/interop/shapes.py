"""The name and shape of every parameter, without building the model: from the section `model` and the vocabulary."""

from m3ae_scale.config import ModelConfig
from m3ae_scale.sizes import Tower

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(model: ModelConfig, vocabulary: int) -> Shapes:
    """Return what M3AE.named_parameters would: name -> shape of the whole parameter."""
    encoder, decoder = model.encoder.shape, model.decoder.shape
    e, d = encoder.dim, decoder.dim
    return {
        **_linear("encoder.embed.image", model.patch_dim, e),
        "encoder.embed.text.weight": (vocabulary, e),
        "encoder.embed.cls_token": (e,),
        **_types("encoder", e, model.type_embedding),
        **_transformer("encoder.transformer", encoder),
        **_linear("decoder.embed.project", e, d),
        "decoder.embed.image_mask": (d,),
        "decoder.embed.text_mask": (d,),
        **_types("decoder", d, model.type_embedding),
        **_transformer("decoder.transformer", decoder),
        **_head("image_head", d, model.image_codebook or model.patch_dim, model.output_head_depth),
        **_head("text_head", d, vocabulary, model.output_head_depth),
    }


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _types(tower: str, dim: int, wanted: bool) -> Shapes:
    return {f"{tower}.embed.places.{kind}_type": (dim,) for kind in ("image", "text")} if wanted else {}


def _transformer(name: str, tower: Tower) -> Shapes:
    shapes: Shapes = {}
    for number in range(tower.depth):
        block = f"{name}.blocks.{number}"
        shapes |= _norm(f"{block}.norm1", tower.dim)
        shapes |= _linear(f"{block}.attention.qkv", tower.dim, 3 * tower.dim)
        shapes |= _linear(f"{block}.attention.proj", tower.dim, tower.dim)
        shapes |= _norm(f"{block}.norm2", tower.dim)
        shapes |= _linear(f"{block}.mlp.fc1", tower.dim, tower.mlp_dim)
        shapes |= _linear(f"{block}.mlp.fc2", tower.mlp_dim, tower.dim)
    return shapes | _norm(f"{name}.norm", tower.dim)


def _head(name: str, dim: int, outputs: int, depth: int) -> Shapes:
    shapes = _norm(f"{name}.hidden.norm", dim) if depth else {}
    for number in range(depth):
        shapes |= _linear(f"{name}.hidden.linears.{number}", dim, dim)
    for number in range(depth):
        shapes |= _norm(f"{name}.hidden.norms.{number}", dim)
    return shapes | _linear(f"{name}.output", dim, outputs)
