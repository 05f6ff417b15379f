"""Widths that the 8-bit products cannot take are named before anything is built."""

import pytest

from m3ae_scale.config import ModelConfig
from m3ae_scale.engine.build import check_widths
from m3ae_scale.errors import InputError
from m3ae_scale.sizes import SIZES


@pytest.mark.parametrize("size", SIZES)
def test_every_named_size_fits(size: str) -> None:
    check_widths(ModelConfig(size=size), tensor=2)


def test_the_width_is_named() -> None:
    narrow = {"dim": 24, "depth": 1, "heads": 4, "mlp_dim": 96}
    with pytest.raises(InputError, match=r"multiples of 16, but model.decoder.dim is 24; choose another width"):
        check_widths(ModelConfig.model_validate({"size": "tiny", "decoder": narrow}), tensor=1)
    with pytest.raises(InputError, match=r"multiples of 64 over 4 tensor-parallel ranks, but model.encoder.dim is 144"):
        wide = {"dim": 144, "depth": 1, "heads": 4, "mlp_dim": 576}
        check_widths(ModelConfig.model_validate({"size": "tiny", "encoder": wide}), tensor=4)
