"""MAE's .pth: read, and the model computes what MAE computes; what cannot mean the same here is refused."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from made_model import drawn_model, experiment, values_of
from torch import Tensor

from m3ae_scale.batch import Batch
from m3ae_scale.config import Experiment, LossConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.errors import InputError
from m3ae_scale.interop.fit import fit
from m3ae_scale.interop.found import IMAGENET
from m3ae_scale.interop.mae import read_mae
from m3ae_scale.interop.plain_vit import plain_blocks, plain_vit
from m3ae_scale.interop.vit import mae_layout
from m3ae_scale.model import M3AE

SEEN = np.arange(16) % 3 == 0


def imagenet(**model: object) -> Experiment:
    """An experiment with MAE's pixels, so that nothing is moved into the weights."""
    made = experiment(**model)
    augment = made.data.augment.model_copy(update={"mean": IMAGENET[0], "std": IMAGENET[1]})
    return made.model_copy(update={"data": made.data.model_copy(update={"augment": augment})})


def mae_weights(seed: int = 3) -> dict[str, Tensor]:
    """Random weights in MAE's layout, the type embeddings 0 as there."""
    values = values_of(drawn_model(imagenet(), seed))
    values["encoder.embed.places.image_type"][:] = values["decoder.embed.places.image_type"][:] = 0
    return {name: torch.tensor(array) for name, array in mae_layout(values, imagenet(), decoder=True).items()}


def save(weights: dict[str, Tensor], path: Path, **more: object) -> Path:
    torch.save({"model": weights, **more}, path)
    return path


def filled(path: Path, target: Experiment) -> M3AE:
    values, _ = fit(read_mae(path), target, 31)
    model = drawn_model(target)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in values:
                parameter.copy_(torch.tensor(values[name]))
    return model


def picture() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((16, 48)).astype(np.float32)


def batch(patches: np.ndarray, seen: np.ndarray) -> Batch:
    return pack([Sample("a", patches, None, seen, None, 1)], LossConfig(), 48)


def unpatchify(patches: np.ndarray) -> Tensor:
    return torch.tensor(patches.reshape(4, 4, 4, 4, 3).transpose(4, 0, 2, 1, 3).reshape(1, 3, 16, 16))


def mae_forward(weights: dict[str, Tensor], patches: np.ndarray, gelu: str) -> Tensor:
    """MAE (He et al. 2022) on one picture of which SEEN is kept, in plain torch: (1, patches, patch_dim)."""
    kernel = weights["patch_embed.proj.weight"]
    x = torch.nn.functional.conv2d(unpatchify(patches), kernel, weights["patch_embed.proj.bias"], stride=4)
    x = (x.flatten(2).transpose(1, 2) + weights["pos_embed"][:, 1:])[:, SEEN]
    x = torch.cat([weights["cls_token"] + weights["pos_embed"][:, :1], x], dim=1)
    x = plain_blocks(weights, "blocks", "norm", 4, x, gelu)
    x = x @ weights["decoder_embed.weight"].T + weights["decoder_embed.bias"]
    full = weights["mask_token"].repeat(1, 17, 1)
    full[:, 0] = x[:, 0]
    full[:, 1:][:, SEEN] = x[:, 1:]
    full = plain_blocks(weights, "decoder_blocks", "decoder_norm", 2, full + weights["decoder_pos_embed"], gelu)
    return (full @ weights["decoder_pred.weight"].T + weights["decoder_pred.bias"])[:, 1:]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@torch.no_grad()
def test_encoder_and_decoder_compute_what_mae_computes(tmp_path: Path) -> None:
    weights = mae_weights()
    weights["cls_token"] += weights["pos_embed"][:, :1] + 0.3  # as a file whose CLS has a position
    weights["pos_embed"][:, :1] -= 0.3
    model = filled(save(weights, tmp_path / "mae.pth", args=argparse.Namespace(norm_pix_loss=False)), imagenet())
    whole = model.encoder(batch(picture(), np.ones(16, bool)))
    assert relative(whole, plain_vit(weights, 4, unpatchify(picture()))[0]) < 1e-5
    predicted = model.reconstruct(batch(picture(), SEEN)).image
    assert relative(predicted, mae_forward(weights, picture(), "tanh")[0, ~SEEN]) < 1e-5


@torch.no_grad()
def test_the_other_gelu_is_a_small_and_told_difference(tmp_path: Path) -> None:
    weights = mae_weights()
    path = save(weights, tmp_path / "mae.pth")
    predicted = filled(path, imagenet()).reconstruct(batch(picture(), SEEN)).image
    error = relative(predicted, mae_forward(weights, picture(), "none")[0, ~SEEN])
    assert 1e-6 < error < 5e-3
    assert any("GELU" in note for note in read_mae(path).notes)


def test_an_encoder_alone_leaves_the_decoder_to_be_drawn(tmp_path: Path) -> None:
    weights = {name: value for name, value in mae_weights().items() if not name.startswith(("decoder", "mask"))}
    weights["head.weight"] = torch.ones(10, 32)
    values, line = fit(read_mae(save(weights, tmp_path / "mae.pth")), imagenet(), 31)
    assert all(name.startswith("encoder.") for name in values)
    assert "decoder.embed.project.weight" in line and "encoder.embed.text.weight" in line and "head.weight" in line


def test_a_type_embedding_in_the_positions_is_found_again(tmp_path: Path) -> None:
    values = values_of(drawn_model(experiment(), seed=2))
    arrays = mae_layout(values, experiment(), decoder=True)
    path = save({name: torch.tensor(array) for name, array in arrays.items()}, tmp_path / "ours.pth")
    found = read_mae(path)
    assert "encoder.embed.places.image_type" in found.values and not found.unused
    for name, value in found.values.items():
        np.testing.assert_allclose(value, values[name], atol=2e-7, err_msg=name)


def test_heads_and_sizes_are_told(tmp_path: Path) -> None:
    found = read_mae(save(mae_weights(), tmp_path / "mae.pth"))
    assert found.grid == 4 and found.model["patch"] == 4 and found.model["image_size"] == 16
    assert (found.model["encoder"]["depth"], found.model["decoder"]["mlp_dim"]) == (3, 32)


def learned_positions(weights: dict[str, Tensor]) -> None:
    weights["pos_embed"] = torch.randn(weights["pos_embed"].shape)


def other_layout(weights: dict[str, Tensor]) -> None:
    weights.clear()
    weights["conv1.weight"] = torch.ones(2)


@pytest.mark.parametrize(("change", "words"), [(learned_positions, "sin-cos"), (other_layout, "conv1.weight")])
def test_what_means_something_else_is_refused(change: object, words: str, tmp_path: Path) -> None:
    weights = mae_weights()
    change(weights)  # type: ignore[operator]
    with pytest.raises(InputError, match=words) as mistake:
        read_mae(save(weights, tmp_path / "mae.pth"))
    assert "\n" not in str(mistake.value)


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("touch touched",)


def test_a_hostile_pth_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refusal:
        read_mae(save(mae_weights(), tmp_path / "mae.pth", args=Evil()))
    assert "\n" not in str(refusal.value) and not (tmp_path / "touched").exists()
