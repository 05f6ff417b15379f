"""Compiled blocks give what plain ones give, from one graph a tower, whatever the sizes of a batch."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from m3ae_scale.bench.synthetic import batches
from m3ae_scale.config import KernelConfig, LossConfig, ModelConfig
from m3ae_scale.engine.compile import apply_compile, without_patched_linear
from m3ae_scale.kernels.attention import packing_of
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import M3AE, PlainLayers
from m3ae_scale.model.losses import objective

WORDS = 31
CONFIG = ModelConfig.model_validate(
    {
        "encoder": {"dim": 32, "depth": 2, "heads": 4, "mlp_dim": 64},
        "decoder": {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 32},
        "image_size": 16,
        "patch": 4,
        "text_length": 12,
    }
)


def model(linear: str = "torch", dtype: torch.dtype = torch.float32) -> M3AE:
    torch.manual_seed(0)
    kernels = choose(KernelConfig(linear=linear), "cpu", dtype)
    built = M3AE(CONFIG, WORDS, (0.5,) * 3, (0.25,) * 3, PlainLayers(kernels.linear), kernels).to(dtype)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return built


@pytest.mark.timeout(900)
def test_batches_of_other_sizes_do_not_recompile() -> None:
    torch._dynamo.reset()
    plain, compiled = model(), model()
    counter = CompileCounterWithBackend("eager")
    assert apply_compile(compiled, "blocks", stage=1, backend=counter) == 4
    variants, tokens = set(), []
    for micro_batch in (5, 3, 8, 2, 6):
        (batch,) = batches(CONFIG, WORDS, micro_batch, 1, seed=micro_batch)
        results = []
        for each in (plain, compiled):
            each.zero_grad()
            loss = objective(each(batch), batch, LossConfig()).mean()
            loss.backward()
            results.append(torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]))
        torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)
        for tower in ("encoder", "decoder"):  # samples of one length need no mask, and have a graph of their own
            variants.add((tower, packing_of(getattr(batch, tower)).key_mask is None))
        assert counter.frame_count == len(variants)
        tokens.append(batch.tokens)
    assert len(set(tokens)) == 5
    torch._dynamo.reset()


@pytest.mark.timeout(900)
def test_8_bit_products_compile() -> None:
    torch._dynamo.reset()
    compiled = model("fp8", torch.bfloat16)
    plain = copy.deepcopy(compiled)
    apply_compile(compiled, "blocks", stage=1, backend="aot_eager")
    (batch,) = batches(CONFIG, WORDS, 5, 1)
    losses = [objective(each(batch), batch, LossConfig()).mean() for each in (plain, compiled)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    weights = [each.encoder.transformer.blocks[0].mlp.fc1.weight.grad for each in (plain, compiled)]  # type: ignore[union-attr]
    torch.testing.assert_close(*weights)
    torch._dynamo.reset()


def test_a_policy_of_none_compiles_nothing() -> None:
    plain = model()
    assert apply_compile(plain, "none", stage=3) == 0
    assert all("forward" not in vars(module) for module in plain.modules())


def test_the_stand_in_of_zero_3_is_switched_off_and_the_rest_stays() -> None:
    config = {"zero_optimization": {"stage": 3, "overlap_comm": True}, "bf16": {"enabled": True}}
    changed = without_patched_linear(config)
    assert changed["zero_optimization"] == {"stage": 3, "overlap_comm": True, "memory_efficient_linear": False}
    assert "memory_efficient_linear" not in config["zero_optimization"]
    assert changed["bf16"] == config["bf16"]
