"""The closed form of the parameter count is the count of the built model, for every named size."""

import pytest
import torch

from m3ae_scale.config import KernelConfig, ModelConfig
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import M3AE, PlainLayers
from m3ae_scale.sizes import SIZES, model_parameters, tower_parameters


@pytest.mark.parametrize("options", [{}, {"output_head_depth": 2, "type_embedding": False}])
@pytest.mark.parametrize("name", SIZES)
def test_closed_form_equals_the_built_model(name: str, options: dict[str, int]) -> None:
    config = ModelConfig.model_validate({"size": name, **options})
    kernels = choose(KernelConfig(), "cpu", torch.float32, False)
    with torch.device("meta"):
        model = M3AE(config, 30522, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), PlainLayers(), kernels)
    built = sum(parameter.numel() for parameter in model.parameters())
    closed = model_parameters(
        SIZES[name].encoder, SIZES[name].decoder,
        head_depth=config.output_head_depth, type_embedding=config.type_embedding,
    )  # fmt: skip
    assert closed == built


@pytest.mark.parametrize(("name", "billions"), [("g", 1.0), ("G", 1.8), ("e", 3.9), ("22b", 21.7)])
def test_published_encoders_have_their_published_size(name: str, billions: float) -> None:
    assert tower_parameters(SIZES[name].encoder) / 1e9 == pytest.approx(billions, rel=0.04)
