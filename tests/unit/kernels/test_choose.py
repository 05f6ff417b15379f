import pytest
import torch

from m3ae_scale.config import KernelConfig
from m3ae_scale.errors import InputError
from m3ae_scale.kernels.choose import choose


def test_auto_names_what_it_chose() -> None:
    kernels = choose(KernelConfig(), "cpu", torch.float32)
    assert str(kernels) == "attention padded, layer_norm torch, linear torch, text_loss chunked, adam torch"


def test_an_offloaded_optimizer_runs_on_the_host() -> None:
    assert choose(KernelConfig(), "cuda", torch.bfloat16, offloaded=True).adam_name == "deepspeed_cpu"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (KernelConfig(attention="varlen"), "kernels.attention: 'varlen' cannot run here"),
        (KernelConfig(attention="flsh"), "kernels.attention: 'flsh' is unknown"),
        (KernelConfig(adam="deepspeed_cpu"), "kernels.adam: 'deepspeed_cpu' cannot run here"),
        (KernelConfig(layer_norm="apex"), "kernels.layer_norm: 'apex' cannot run here"),
        (KernelConfig(text_loss="liger"), "kernels.text_loss: 'liger' cannot run here"),
    ],
)
def test_an_explicit_choice_never_degrades(config: KernelConfig, said: str) -> None:
    with pytest.raises(InputError, match=said):
        choose(config, "cpu", torch.float32)
