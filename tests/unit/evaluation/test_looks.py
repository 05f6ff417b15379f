"""Retrieval's ranks, and attention that is recomputed: each against a plain count or the model itself."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.config import KernelConfig, LossConfig, ModelConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.evaluation.attention import looks_of, specificity, weights_of
from m3ae_scale.evaluation.retrieve import centred, chance_of, ranks_of, same_caption
from m3ae_scale.kernels.attention import packing_of
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import Encoder, PlainLayers


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.integers(1, 12))
def test_ranks_are_those_of_a_count(seed: int, n: int, captions: int) -> None:
    rng = np.random.default_rng(seed)
    texts = [str(i).encode() for i in rng.integers(0, captions, n)]
    similarity = torch.tensor(rng.integers(0, 4, (n, n)).astype(np.float64))  # with ties
    same = same_caption(texts)
    for query, rank in enumerate(ranks_of(similarity, same).tolist()):
        right = [j for j in range(n) if texts[j] == texts[query]]
        best = max(float(similarity[query, j]) for j in right)
        assert rank == 1 + sum(float(similarity[query, j]) >= best for j in range(n) if j not in right)


@pytest.mark.parametrize("at", [1, 5, 10])
def test_chance_is_what_random_orders_find(at: int) -> None:
    same = same_caption([b"a", b"a", b"b", b"c", b"d", b"d", b"d", b"e"])
    assert chance_of(same_caption([str(i).encode() for i in range(8)]), at) == pytest.approx(min(at / 8, 1))
    generator = torch.Generator().manual_seed(0)
    found = [(ranks_of(torch.rand(8, 8, generator=generator), same) <= at).double().mean().item() for _ in range(4000)]
    # The best of several right answers is found when any of them is, ahead of the wrong ones within the first `at`.
    assert np.mean(found) >= chance_of(same, at) - 0.02


def test_equal_features_do_not_count_as_found() -> None:
    assert (ranks_of(torch.ones(5, 5), torch.eye(5, dtype=torch.bool)) == 5).all()


def test_centred_features_have_no_mean() -> None:
    assert centred(torch.rand(7, 3)).mean(0).abs().max() < 1e-6


def encoder() -> Encoder:
    config = ModelConfig.model_validate(
        {
            "encoder": {"dim": 32, "depth": 3, "heads": 4, "mlp_dim": 64},
            "decoder": {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32},
            "image_size": 16,
            "patch": 4,
        }
    )
    torch.manual_seed(0)
    made = Encoder(config, 31, (0.5,) * 3, (0.25,) * 3, PlainLayers(), choose(KernelConfig(), "cpu", torch.float32))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return made.eval()


def samples() -> list[Sample]:
    rng = np.random.default_rng(0)
    made = []
    for i, words in enumerate((5, 9, 0)):
        patches = rng.integers(0, 255, (16, 48)).astype(np.uint8)
        made.append(
            Sample(
                str(i), patches, rng.integers(0, 31, words).astype(np.int32), np.ones(16, bool), np.ones(words, bool), i
            )
        )
    return made


@torch.no_grad()
def test_recomputed_attention_gives_what_the_block_computes() -> None:
    batch = pack(samples(), LossConfig(), 48)
    module, packing = encoder().transformer.blocks[1].attention, packing_of(batch.encoder)
    x = torch.randn(len(batch.encoder.order), 32, generator=torch.Generator().manual_seed(1))
    weights = weights_of(module, x, packing)
    # With v the same in every head, the mean over heads of what they give is the mean weights times v.
    v = torch.randn(len(x), 8, generator=torch.Generator().manual_seed(2))
    q, k, _ = module.qkv(x).view(len(x), 3, 4, 8).unbind(1)
    attended = module.attend(torch.stack([q, k, v[:, None].expand(-1, 4, -1)], dim=1), packing).mean(1)
    bounds = packing.cu_seqlens.tolist()
    for sample, (start, end) in enumerate(itertools.pairwise(bounds)):
        assert torch.allclose(weights[sample] @ v[start:end], attended[start:end], atol=1e-5)


def test_looks_have_the_shape_of_the_pair_and_leave_no_hook() -> None:
    made = encoder()
    looks = looks_of(made, pack(samples(), LossConfig(), 48))
    assert [tuple(look.words_to_patches.shape) for look in looks] == [(3, 5, 16), (3, 9, 16)]
    assert [tuple(look.patches_to_words.shape) for look in looks] == [(3, 16, 5), (3, 16, 9)]
    assert all((look.words_to_patches.sum(-1) <= 1 + 1e-5).all() for look in looks)
    assert not any(block.attention._forward_pre_hooks for block in made.transformer.blocks)


def test_specificity_goes_from_alike_to_nowhere_alike() -> None:
    assert specificity(torch.ones(2, 3, 8)).abs().max() < 1e-6
    assert torch.allclose(specificity(torch.eye(8)[None]), torch.tensor([7 / 8]))
