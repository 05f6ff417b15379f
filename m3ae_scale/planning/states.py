"""Memory of the model states per rank, in closed form: parameters, gradients and optimizer by ZeRO stage and TP.

Rajbhandari et al. 2020, ZeRO, section 3.1. Activations, buffers and fragmentation come on top.
"""

from dataclasses import dataclass

from m3ae_scale.config import ModelConfig
from m3ae_scale.sizes import Tower, model_parameters

_MOMENTS = 2 * 4  # bytes a parameter: AdamW's two, in fp32
_MASTER = 4  # bytes a parameter: the fp32 copy that ZeRO keeps, of fp32 weights too


@dataclass(frozen=True)
class States:
    """Bytes of model states on one rank."""

    parameters: float
    gradients: float
    optimizer: float  # moments, and the fp32 master copy
    optimizer_on_host: bool = False
    parameters_on_host: bool = False

    @property
    def device(self) -> float:
        """Bytes that stay on the device."""
        kept = 0.0 if self.parameters_on_host else self.parameters
        return kept + self.gradients + (0.0 if self.optimizer_on_host else self.optimizer)

    @property
    def host(self) -> float:
        """Bytes that offloading moves to the host."""
        return self.parameters + self.gradients + self.optimizer - self.device


def parameters_per_rank(model: ModelConfig, vocabulary: int, tensor: int = 1) -> int:
    """Parameters that one tensor-parallel rank holds before ZeRO divides them; `vocabulary` in word pieces."""
    total = model_parameters(
        model.encoder.shape,
        model.decoder.shape,
        vocabulary,
        model.patch_dim,
        model.output_head_depth,
        model.type_embedding,
    )
    words = -(-vocabulary // tensor) * tensor  # padded to a multiple
    per_word = model.encoder.dim + model.decoder.dim + 1  # a row of the embedding, a row and a bias of the head
    towers = _split(model.encoder.shape) + _split(model.decoder.shape)
    whole = total - towers - vocabulary * per_word
    return whole + (towers + words * per_word) // tensor


def states_per_rank(
    parameters: int,
    *,
    stage: int,
    data: int,
    precision: str,
    gradients_fp32: bool = False,
    optimizer_on_host: bool = False,
    parameters_on_host: bool = False,
) -> States:
    """Divide the states of `parameters` (those of one tensor-parallel rank) over `data` ranks as ZeRO `stage` does."""
    weight = 2 if precision == "bf16" else 4  # bytes
    gradient = 4 if gradients_fp32 else weight
    optimizer = _MOMENTS + (_MASTER if stage >= 1 or precision == "bf16" else 0)
    return States(
        parameters=parameters * weight / (data if stage >= 3 else 1),
        gradients=parameters * gradient / (data if stage >= 2 else 1),
        optimizer=parameters * optimizer / (data if stage >= 1 else 1),
        optimizer_on_host=optimizer_on_host,
        parameters_on_host=parameters_on_host,
    )


def _split(tower: Tower) -> int:
    """Parameters of `tower` that tensor parallelism divides: qkv and fc1 with their biases, proj and fc2 without."""
    d, m = tower.dim, tower.mlp_dim
    return tower.depth * ((3 * d * d + 3 * d) + d * d + (d * m + m) + m * d)
