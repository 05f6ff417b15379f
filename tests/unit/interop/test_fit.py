"""Weights are taken by name where they mean the same, and refused in one line where they do not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_model import VOCABULARY, drawn_model, experiment, values_of
from safetensors.numpy import save_file

from m3ae_scale.config import Experiment, LossConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.errors import InputError
from m3ae_scale.interop.fit import fit
from m3ae_scale.interop.found import IMAGENET, Found
from m3ae_scale.interop.read import read_found
from m3ae_scale.model.pixels import normalise


def found(source: Experiment, **changes: object) -> Found:
    augment = source.data.augment
    whole = Found(
        path=Path("other.pkl"),
        kind="m3ae_public",
        values=values_of(drawn_model(source, seed=1)),
        model=source.model.model_dump(),
        pixels=(augment.mean, augment.std),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_everything_is_taken_as_it_is() -> None:
    values, line = fit(found(experiment()), experiment(), VOCABULARY)
    assert line.endswith("80 of 80 parameters taken; drawn anew: none; not used: none")
    for name, value in found(experiment()).values.items():
        np.testing.assert_array_equal(values[name], value)


def test_what_is_missing_or_left_over_is_told_in_one_line() -> None:
    whole = found(experiment())
    encoder = {name: value for name, value in whole.values.items() if name.startswith("encoder.")}
    values, line = fit(replace(whole, values=encoder | {"x.y": np.ones(2)}, unused=("head",)), experiment(), VOCABULARY)
    assert set(values) == set(encoder) and "\n" not in line
    assert "decoder.transformer.blocks.*.attention.qkv.weight" in line and line.endswith("not used: x.y, head")


WRONG = {
    "its vocabulary has 31 words": ({}, {}, 32),
    "heads": ({"encoder": {"dim": 32, "depth": 3, "heads": 8, "mlp_dim": 64}}, {}, VOCABULARY),
    "encoder.embed.image.weight is": ({"patch": 8}, {}, VOCABULARY),
    "fc1.weight is": ({"encoder": {"dim": 32, "depth": 3, "heads": 4, "mlp_dim": 96}}, {}, VOCABULARY),
    "positions are those of 8 x 8": ({}, {"grid": 8}, VOCABULARY),
    "no parameter has a name": ({}, {"values": {"a": np.ones(1)}}, VOCABULARY),
}


@pytest.mark.parametrize("words", WRONG)
def test_what_means_something_else_is_refused(words: str) -> None:
    target, changes, vocabulary = WRONG[words]
    with pytest.raises(InputError, match=words) as mistake:
        fit(found(experiment(), **changes), experiment(**target), vocabulary)
    assert "\n" not in str(mistake.value)


def test_other_word_pieces_of_the_same_number_are_refused(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "vocab.txt", tmp_path / "mine.txt"
    theirs.write_text("[UNK]\na\n")
    ours.write_text("[UNK]\nb\n")
    target = experiment()
    target = target.model_copy(update={"data": target.data.model_copy(update={"tokenizer": str(ours)})})
    with pytest.raises(InputError, match="word pieces"):
        fit(found(experiment(), vocabulary=theirs), target, VOCABULARY)
    ours.write_text("[UNK]\na\n")
    fit(found(experiment(), vocabulary=theirs), target, VOCABULARY)


def test_other_pixel_normalisation_changes_nothing_but_the_weights() -> None:
    """The same picture: encoded alike, and reconstructed alike in pixels."""
    source = experiment()
    other = source.data.augment.model_copy(update={"mean": IMAGENET[0], "std": IMAGENET[1]})
    target = source.model_copy(update={"data": source.data.model_copy(update={"augment": other})})
    values, line = fit(found(source), target, VOCABULARY)
    assert "pixel normalisation" in line
    before, after = drawn_model(source, seed=1), drawn_model(target)
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            parameter.copy_(torch.from_numpy(values[name]))
        patches = np.random.default_rng(0).integers(0, 256, (16, 48)).astype(np.uint8)
        seen = np.arange(16) % 3 == 0
        batch = pack([Sample("a", patches, None, seen, None, 1)], LossConfig(), 48)
        assert relative(after.encoder(batch), before.encoder(batch)) < 1e-5
        pictures = []
        for model, augment in ((before, source.data.augment), (after, other)):
            y = model.reconstruct(batch).image.view(-1, 16, 3)
            pictures.append(y * torch.tensor(augment.std) + torch.tensor(augment.mean))
        assert relative(pictures[1], pictures[0]) < 1e-5
    assert not torch.equal(normalise(batch.patches, *IMAGENET), normalise(batch.patches, (0.5,) * 3, (0.5,) * 3))


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def test_files_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    values = values_of(drawn_model(experiment()))
    save_file(values, tmp_path / "weights.bin")
    read = read_found(tmp_path / "weights.bin")
    assert read.values.keys() == values.keys()
    np.testing.assert_array_equal(read.values["encoder.embed.cls_token"], values["encoder.embed.cls_token"])
    for name, content in {"a.pkl": b"hello world, this is text", "b.pth": b"", "c": b"PK\x03\x04 torn"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as mistake:
            read_found(tmp_path / name)
        assert "\n" not in str(mistake.value) and name in str(mistake.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_found(tmp_path / "absent")
