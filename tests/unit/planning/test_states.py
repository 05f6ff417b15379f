"""The closed forms against models that are really built, and against ZeRO's own table."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from m3ae_scale.config import KernelConfig, ModelConfig
from m3ae_scale.kernels.choose import choose
from m3ae_scale.kernels.linear_cross_entropy import LinearCrossEntropy
from m3ae_scale.model.layers import PlainLayers
from m3ae_scale.model.m3ae import M3AE
from m3ae_scale.planning.states import parameters_per_rank, states_per_rank

WORDS = 1001


class Share(PlainLayers):
    """The layers of one of `size` tensor-parallel ranks, by shape alone."""

    def __init__(self, size: int):
        self.size = size

    def column(self, inputs: int, outputs: int, blocks: int = 1) -> nn.Module:
        return nn.Linear(inputs, outputs // self.size)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Linear(inputs // self.size, outputs)

    def vocabulary_embedding(self, words: int, dim: int) -> nn.Module:
        return nn.Embedding(-(-words // self.size), dim)

    def vocabulary_head(self, dim: int, words: int, score: LinearCrossEntropy) -> nn.Module:
        return nn.Linear(dim, -(-words // self.size))


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("size", ["tiny", "base", "22b"])
def test_parameters_are_those_of_a_built_model(size: str, tensor: int) -> None:
    config = ModelConfig.model_validate({"size": size, "output_head_depth": 1})
    kernels = choose(KernelConfig(), "cpu", torch.float32)
    with torch.device("meta"):
        model = M3AE(config, WORDS, (0.5,) * 3, (0.5,) * 3, Share(tensor), kernels)
    assert sum(p.numel() for p in model.parameters()) == parameters_per_rank(config, WORDS, tensor)


@pytest.mark.parametrize(
    ("stage", "gigabytes"),
    [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)],
)
def test_the_figures_of_the_zero_paper(stage: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5B parameters in mixed precision on 64 ranks."""
    states = states_per_rank(7_500_000_000, stage=stage, data=64, precision="bf16")
    assert states.device / 1e9 == pytest.approx(gigabytes, rel=5e-3)


@given(st.integers(1, 10**11), st.integers(1, 3), st.integers(1, 4096), st.booleans(), st.floats(0, 1), st.booleans())
def test_offloading_takes_from_the_device(
    parameters: int, stage: int, data: int, fp32: bool, share: float, weights: bool
) -> None:
    precision = "fp32" if fp32 else "bf16"
    here = states_per_rank(parameters, stage=stage, data=data, precision=precision)
    moved = states_per_rank(
        parameters, stage=stage, data=data, precision=precision, optimizer_on_host=share, parameters_on_host=weights
    )
    assert here.host == here.copies == 0
    assert moved.device + moved.host == pytest.approx(here.device + moved.copies)
    assert moved.host >= share * here.optimizer
    whole = states_per_rank(parameters, stage=stage, data=data, precision=precision, optimizer_on_host=1.0)
    assert whole.device < here.device
    more = states_per_rank(parameters, stage=stage, data=data + 1, precision=precision)
    assert more.device <= here.device
