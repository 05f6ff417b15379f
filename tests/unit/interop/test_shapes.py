"""The names and shapes that weights are matched against are those of the model that is built."""

from typing import Any

import pytest
from made_model import VOCABULARY, drawn_model, experiment

from m3ae_scale.interop.shapes import parameter_shapes


@pytest.mark.parametrize("options", [{}, {"output_head_depth": 2}, {"type_embedding": False}, {"image_codebook": 7}])
def test_shapes_are_those_of_the_model(options: dict[str, Any]) -> None:
    built = drawn_model(experiment(**options))
    expected = {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}
    shapes = parameter_shapes(experiment(**options).model, VOCABULARY)
    assert shapes == expected
