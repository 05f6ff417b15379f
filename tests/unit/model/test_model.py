"""The model as a whole: what it must not depend on, recomputation, and its size at every name."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_m3ae import PATCH_DIM, tiny_model

from m3ae_scale.batch import Batch
from m3ae_scale.config import KernelConfig, LossConfig, ModelConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.engine.recompute import apply_recompute
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import M3AE, PlainLayers
from m3ae_scale.model.losses import objective
from m3ae_scale.sizes import SIZES, head_parameters, tower_parameters

LOSS = LossConfig(image=1.0, text=0.5, unpaired_text=0.25)


def sample(number: int, kind: str) -> Sample:
    rng = np.random.default_rng(number)
    n = int(rng.integers(1, 12))
    image, text = kind != "text", kind != "image"
    return Sample(
        name=str(number),
        patches=rng.integers(0, 255, (16, PATCH_DIM)).astype(np.uint8) if image else None,
        words=rng.integers(0, 31, n).astype(np.int32) if text else None,
        visible_patches=rng.random(16) > 0.75 if image else None,
        visible_words=rng.random(n) > 0.75 if text else None,
        seed=number,
    )


SAMPLES = [sample(i, kind) for i, kind in enumerate(["paired", "image", "text", "paired", "text", "image"])]


def scored(model: M3AE, samples: list[Sample], loss: LossConfig = LOSS) -> torch.Tensor:
    batch = pack(samples, loss, PATCH_DIM)
    return objective(model(batch), batch, loss)


@pytest.mark.parametrize("dropping", [{}, {"drop_path": 0.3, "dropout": 0.2}])
def test_a_sample_does_not_see_its_neighbours(dropping: dict[str, float]) -> None:
    model = tiny_model(**dropping)
    together = scored(model, SAMPLES)
    for i, one in enumerate(SAMPLES):
        torch.testing.assert_close(scored(model, [one])[0], together[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", ["full", "every_2", "selective"])
@pytest.mark.parametrize("dropping", [{}, {"drop_path": 0.3, "dropout": 0.2}])
def test_recomputation_changes_no_gradient(policy: str, dropping: dict[str, float]) -> None:
    gradients = []
    for recompute in ("none", policy):
        model = tiny_model(**dropping)
        blocks = apply_recompute(model, recompute)
        assert blocks == {"none": 0, "full": 5, "selective": 5, "every_2": 3}[recompute]
        scored(model, SAMPLES).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=0, rtol=0, msg=name)


def test_dropping_ends_with_training() -> None:
    dropping, plain = tiny_model(drop_path=0.5, dropout=0.5), tiny_model()
    assert not torch.allclose(scored(dropping, SAMPLES), scored(plain, SAMPLES))
    assert torch.equal(scored(dropping.eval(), SAMPLES), scored(plain, SAMPLES))


@pytest.mark.parametrize("kind", ["paired", "image", "text"])
@pytest.mark.parametrize("visible", [True, False])
def test_every_parameter_has_a_gradient_or_none_that_matters(kind: str, visible: bool) -> None:
    """A batch of one kind, all hidden or all visible, still calls every module: ZeRO-3 waits for each of them."""
    samples = []
    for i in range(3):
        made = sample(i, kind)
        samples.append(
            replace(
                made,
                visible_patches=None if made.visible_patches is None else np.full(16, visible),
                visible_words=None if made.words is None else np.full(len(made.words), visible),
            )
        )
    model = tiny_model()
    scored(model, samples).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_all_token_losses_add_the_visible_tokens() -> None:
    model = tiny_model()
    everywhere = LossConfig(all_image_tokens=True, all_text_tokens=True)
    assert not torch.allclose(scored(model, SAMPLES), scored(model, SAMPLES, everywhere))
    batch = pack(SAMPLES, everywhere, PATCH_DIM)
    assert len(batch.image_targets.row) == len(batch.patches) and len(batch.text_targets.row) == len(batch.words)


def test_unpaired_text_has_its_own_weight() -> None:
    model, text = tiny_model(), [sample(2, "text")]
    assert scored(model, text)[0].item() == pytest.approx(
        0.25 / 0.5 * scored(model, text, LossConfig(unpaired_text=0.5))[0].item()
    )


def test_discretised_targets_come_with_the_batch() -> None:
    model = tiny_model(image_codebook=7, output_head_depth=2)
    batch = pack(SAMPLES, LOSS, PATCH_DIM)
    with pytest.raises(ValueError, match="patch_tokens"):
        model(batch)
    tokens = torch.arange(len(batch.patches)) % 7
    losses = model(Batch(**{**vars(batch), "patch_tokens": tokens}))
    assert losses.image[batch.has_image].gt(0).all() and not losses.image[~batch.has_image].any()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("head_depth", [0, 2])
def test_parameter_counts_of_the_named_sizes(name: str, head_depth: int) -> None:
    vocabulary, size = 30522, SIZES[name]
    config = ModelConfig.model_validate({"size": name, "output_head_depth": head_depth})
    with torch.device("meta"):
        model = M3AE(
            config, vocabulary, (0.5,) * 3, (0.5,) * 3, PlainLayers(), choose(KernelConfig(), "cpu", torch.float32)
        )
    e, d = size.encoder.dim, size.decoder.dim
    encoder = tower_parameters(size.encoder) + (config.patch_dim * e + e) + vocabulary * e + 3 * e
    decoder = tower_parameters(size.decoder) + (e * d + d) + 4 * d
    heads = head_parameters(d, config.patch_dim, head_depth) + head_parameters(d, vocabulary, head_depth)
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.parameters()) == encoder + decoder + heads
