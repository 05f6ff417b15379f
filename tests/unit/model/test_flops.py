"""The closed form against what torch counts while the real model runs."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from m3ae_scale.batch import Batch
from m3ae_scale.config import KernelConfig, LossConfig, ModelConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.engine.recompute import apply_recompute
from m3ae_scale.kernels.choose import choose
from m3ae_scale.kernels.peak import datasheet, matmul_ceiling
from m3ae_scale.model import M3AE, PlainLayers
from m3ae_scale.model.flops import batch_flops, forward_flops, hardware_flops, pairs_per_sample, step_flops, work_of
from m3ae_scale.model.losses import objective

WORDS = 31


def config(**changes: Any) -> ModelConfig:
    towers = {
        "encoder": {"dim": 32, "depth": 3, "heads": 4, "mlp_dim": 64},
        "decoder": {"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 48},
    }
    # Adding a type embedding is done by a (tiny) product, which torch would count.
    sizes = {"image_size": 16, "patch": 4, "text_length": 12, "unpaired_text_length": 20, "type_embedding": False}
    return ModelConfig.model_validate(towers | sizes | changes)


def batch_of(lengths: list[tuple[int, int]]) -> Batch:
    """Samples of (visible patches of 16, words): of the words, every third is visible."""
    samples = []
    for number, (visible, words) in enumerate(lengths):
        fields: dict[str, Any] = {}
        if visible:
            fields |= {"patches": np.zeros((16, 48), np.uint8), "visible_patches": np.arange(16) < visible}
        else:
            fields |= {"patches": None, "visible_patches": None}
        seen = np.arange(words) % 3 == 0
        fields |= {"words": np.zeros(words, np.int32), "visible_words": seen}
        samples.append(Sample(name=str(number), seed=number, **fields))
    return pack(samples, LossConfig(), 48)


def counted(model: ModelConfig, batch: Batch, recompute: str = "none") -> int:
    kernels = choose(KernelConfig(attention="reference", text_loss="plain"), "cpu", torch.float32)
    built = M3AE(model, WORDS, (0.5,) * 3, (0.5,) * 3, PlainLayers(), kernels)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter)
    apply_recompute(built, recompute)
    with FlopCounterMode(display=False) as counter:
        objective(built(batch), batch, LossConfig()).sum().backward()
    return counter.get_total_flops()


LENGTHS = st.lists(st.tuples(st.integers(0, 16), st.integers(1, 12)), min_size=1, max_size=4)


@pytest.mark.parametrize(
    ("lengths", "head_depth"), [([(4, 5), (0, 9), (16, 2)], 0), ([(1, 12), (9, 1)], 2), ([(0, 7)], 1)]
)
def test_a_step_is_what_torch_counts(lengths: list[tuple[int, int]], head_depth: int) -> None:
    model, batch = config(output_head_depth=head_depth), batch_of(lengths)
    assert float(batch_flops(model, WORDS, batch)) == step_flops(model, WORDS, work_of(batch))
    assert step_flops(model, WORDS, work_of(batch)) == counted(model, batch)


@pytest.mark.parametrize("recompute", ["none", "full", "every_2", "every_3"])
def test_recomputation_is_what_torch_counts(recompute: str) -> None:
    model, batch = config(), batch_of([(4, 5), (0, 9), (8, 2)])
    assert hardware_flops(model, WORDS, work_of(batch), recompute) == counted(model, batch, recompute)


def test_codebook_targets_change_the_image_head_alone() -> None:
    batch = batch_of([(4, 5), (8, 2)])
    pixels, codes = (forward_flops(config(image_codebook=n), WORDS, work_of(batch)) for n in (0, 96))
    assert codes.image_head == 2 * pixels.image_head
    assert codes._replace(image_head=0) == pixels._replace(image_head=0)


@given(lengths=LENGTHS)
def test_padding_never_makes_less_work(lengths: list[tuple[int, int]]) -> None:
    batch = batch_of(lengths)
    useful, padded = work_of(batch), work_of(batch, padded=True)
    assert padded.decoder_pairs >= useful.decoder_pairs
    assert useful.encoder_pairs == float(pairs_per_sample(batch.encoder).sum())


def test_devices_are_found_by_the_names_of_their_drivers() -> None:
    assert datasheet("NVIDIA H100 80GB HBM3").memory == 3.35e12  # type: ignore[union-attr]
    assert datasheet("NVIDIA H100 PCIe").memory == 2.0e12  # type: ignore[union-attr]
    assert datasheet("NVIDIA A100-SXM4-80GB").memory == pytest.approx(2.039e12)  # type: ignore[union-attr]
    assert datasheet("NVIDIA L40") is None
    assert matmul_ceiling(torch.device("cpu"), torch.float32, size=64, repeats=3) > 0
