"""Memory of the model states per rank, in closed form: parameters, gradients and optimizer by ZeRO stage and TP.

Rajbhandari et al. 2020, ZeRO, section 3.1, and what DeepSpeed 0.19 holds beyond that: a test counts the tensors of the
real engine. Activations, buffers and fragmentation come on top.
"""

from dataclasses import dataclass

from m3ae_scale.config import ModelConfig
from m3ae_scale.sizes import Tower, model_parameters

_MOMENTS = 2 * 4  # bytes a parameter: AdamW's two, in fp32
_MASTER = 4  # bytes a parameter: the fp32 copy that ZeRO keeps, of fp32 weights too


@dataclass(frozen=True)
class States:
    """Bytes of model states on one rank, when they are most: before the optimizer step."""

    parameters: float
    gradients: float
    optimizer: float  # moments, and the fp32 master copy
    copies: float = 0.0  # beside an offloaded optimizer: the gradient that it steps with, at ZeRO-2 the new weights too
    parameters_on_host: bool = False
    gradients_on_host: bool = False
    optimizer_on_host: float = 0.0  # share, 0 to 1; the copies go with it

    @property
    def device(self) -> float:
        """Bytes that stay on the device."""
        return self.parameters + self.gradients + self.optimizer + self.copies - self.host

    @property
    def host(self) -> float:
        """Bytes that offloading moves to the host."""
        moved = self.optimizer_on_host * (self.optimizer + self.copies)
        return moved + self.parameters_on_host * self.parameters + self.gradients_on_host * self.gradients


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
    optimizer_on_host: float | None = None,
    parameters_on_host: bool = False,
) -> States:
    """Divide the states of `parameters` (those of one tensor-parallel rank) over `data` ranks as ZeRO `stage` does.

    optimizer_on_host: the share of an offloaded optimizer that is there; None: it is not offloaded.
    """
    weight = 2 if precision == "bf16" else 4  # bytes
    gradient = 4 if gradients_fp32 else weight
    if stage == 1 and gradient > weight:
        gradient += weight  # there the sums in fp32 stand beside the gradients themselves
    optimizer = _MOMENTS + (_MASTER if stage >= 1 or precision == "bf16" else 0)
    offloaded = optimizer_on_host is not None
    return States(
        parameters=parameters * weight / (data if stage >= 3 else 1),
        gradients=parameters * gradient / (data if stage >= 2 else 1),
        optimizer=parameters * optimizer / (data if stage >= 1 else 1),
        copies=parameters * (_MASTER + (0 if stage >= 3 else weight)) / data if offloaded else 0.0,
        parameters_on_host=parameters_on_host,
        gradients_on_host=offloaded and (stage >= 3 or gradient == weight),
        optimizer_on_host=optimizer_on_host or 0.0,
    )


def _split(tower: Tower) -> int:
    """Parameters of `tower` that tensor parallelism divides: qkv and fc1 with their biases, proj and fc2 without."""
    d, m = tower.dim, tower.mlp_dim
    return tower.depth * ((3 * d * d + 3 * d) + d * d + (d * m + m) + m * d)
