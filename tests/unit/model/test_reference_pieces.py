"""The small pieces against the official code's recorded numbers, and the rules that parameters follow."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_m3ae import tiny_model

from m3ae_scale.interop.m3ae_public import flax_path
from m3ae_scale.kernels.layer_norm import torch_layer_norm
from m3ae_scale.kernels.linear_cross_entropy import chunked
from m3ae_scale.model.init import decays, draw
from m3ae_scale.model.pixels import normalise, to_bytes
from m3ae_scale.model.positions import position_table, sincos_1d, sincos_2d


@pytest.fixture(scope="module")
def misc(root):  # type: ignore[no-untyped-def]
    return np.load(root / "tests/fixtures/m3ae_public/misc.npz")


def close(ours: torch.Tensor, theirs: np.ndarray, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(ours.float(), torch.from_numpy(theirs), atol=tolerance, rtol=tolerance)


def test_sincos_positions(misc) -> None:  # type: ignore[no-untyped-def]
    for key in misc.files:
        kind, _, rest = key.partition("/")
        if kind in ("sincos1d", "sincos2d"):
            dim, length = (int(part[1:]) for part in rest.split("_"))
            ours = sincos_1d(dim, torch.arange(length)) if kind == "sincos1d" else sincos_2d(dim, round(length**0.5))
            close(ours, misc[key][0], 5e-6)  # their angles are float32: position 63 is good to 4e-6


def test_position_table_stacks_cls_image_and_words() -> None:
    table = position_table(48, 3, 5, torch.device("cpu"), torch.float32)
    assert table.shape == (1 + 9 + 5, 48) and not table[0].any()
    torch.testing.assert_close(table[1:10], sincos_2d(48, 3).float())
    torch.testing.assert_close(table[10:], sincos_1d(48, torch.arange(5)).float())


def test_gelu_and_layer_norm(misc) -> None:  # type: ignore[no-untyped-def]
    close(F.gelu(torch.from_numpy(misc["gelu/x"]), approximate="tanh"), misc["gelu/y"])
    norm = torch_layer_norm(32)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(misc["layernorm/scale"]))
        norm.bias.copy_(torch.from_numpy(misc["layernorm/bias"]))
        close(norm(torch.from_numpy(misc["layernorm/x"])), misc["layernorm/y"], 1e-5)


def test_cross_entropy(misc) -> None:  # type: ignore[no-untyped-def]
    logits, tokens = torch.from_numpy(misc["xent/logits"]), torch.from_numpy(misc["xent/tokens"]).long()
    valid = torch.from_numpy(misc["xent/valid"])
    words = logits.shape[-1]
    # Logits through a head that changes nothing.
    loss, predicted = chunked(logits.flatten(0, 1), torch.eye(words), torch.zeros(words), tokens.flatten())
    count = valid.sum(1).clamp(min=1e-5)
    mean = ((loss.view_as(valid) * valid).sum(1) / count).mean()
    close(mean, misc["xent/loss"])
    right = ((predicted.view_as(tokens) == tokens) * valid).sum(1) / count
    close(right.mean(), misc["xent/accuracy"])


def test_pixels_survive_the_way_there_and_back() -> None:
    patches = torch.arange(256, dtype=torch.uint8).repeat(3).view(4, 192)
    mean, std = (0.5762, 0.5503, 0.5213), (0.3207, 0.3169, 0.3307)
    normal = normalise(patches, mean, std)
    expected = (patches.view(4, -1, 3).double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(normal.view(4, -1, 3).double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(to_bytes(normal, mean, std), patches)
    assert normalise(patches[:0], mean, std).shape == (0, 192)


@pytest.fixture(scope="module")
def names() -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in tiny_model().named_parameters()}


def test_weight_decay_is_the_references(root, names) -> None:  # type: ignore[no-untyped-def]
    recorded = json.loads((root / "tests/fixtures/m3ae_public/m3ae_type_h0.json").read_text())
    decayed = recorded["info"]["weight_decay_mask"]
    compared = 0
    for name in names:
        if (path := flax_path(name)) in decayed:
            assert decays(name) == decayed[path], name
            compared += 1
    assert compared == len(decayed)


def test_initial_values_are_drawn_as_the_reference_draws_them(root) -> None:  # type: ignore[no-untyped-def]
    recorded = json.loads((root / "tests/fixtures/m3ae_public/m3ae_type_h0.json").read_text())
    arrays = np.load(root / "tests/fixtures/m3ae_public/m3ae_type_h0.npz")
    official = recorded["info"]["official_init_stats"]
    compared = 0
    for name, _ in tiny_model().named_parameters():
        path = flax_path(name)
        if path not in official:
            continue
        shape = arrays[f"params/{path}"].shape
        shape = shape[::-1] if path.endswith("kernel") else tuple(n for n in shape if n != 1)
        value, theirs = draw(name, shape, seed=1), official[path]
        spread = 6 * theirs["std"] / np.sqrt(2 * value.numel())  # six standard errors of a standard deviation
        assert value.std(correction=0).item() == pytest.approx(theirs["std"], abs=spread + 1e-7), name
        assert value.mean().item() == pytest.approx(theirs["mean"], abs=8 * theirs["std"] / np.sqrt(value.numel()))
        compared += 1
    assert compared == len(official)


def test_a_drawn_value_depends_on_seed_and_name_alone() -> None:
    a = draw("encoder.transformer.blocks.0.mlp.fc1.weight", (8, 4), 1)
    assert torch.equal(a, draw("encoder.transformer.blocks.0.mlp.fc1.weight", (8, 4), 1))
    assert not torch.equal(a, draw("encoder.transformer.blocks.1.mlp.fc1.weight", (8, 4), 1))
    assert not torch.equal(a, draw("encoder.transformer.blocks.0.mlp.fc1.weight", (8, 4), 2))
