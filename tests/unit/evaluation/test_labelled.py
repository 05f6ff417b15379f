"""Labelled sets: class folders and shards say the same, and what cannot be used is told in one line."""

import io
import tarfile
from pathlib import Path

import digits
import numpy as np
import pytest
from PIL import Image

from m3ae_scale.config import DataConfig, SourceConfig
from m3ae_scale.errors import InputError
from m3ae_scale.evaluation.labelled import open_labelled, open_unlabelled

DATA = DataConfig(sources=[SourceConfig(name="none", shards="none")], tokenizer="none")


def test_shards_hold_what_the_folders_hold(place: Path) -> None:
    folders = open_labelled(str(place / "test"), "image", DATA)
    shards = open_labelled(str(place / "shards" / "test"), "image", DATA)
    assert folders.classes == tuple(sorted(digits.WORDS)) and shards.classes == tuple("0123456789")
    truth = digits.pictures()[1][digits.TEST]
    assert shards.labels.tolist() == truth
    assert sorted(folders.classes[i] for i in folders.labels) == sorted(digits.WORDS[i] for i in truth)
    pixels = {np.asarray(Image.open(io.BytesIO(shards.read(i).image or b""))).tobytes(): i for i in range(len(shards))}
    for i in range(0, len(folders), 50):
        found = np.asarray(Image.open(io.BytesIO(folders.read(i).image or b""))).tobytes()
        assert digits.WORDS[shards.labels[pixels[found]]] == folders.classes[folders.labels[i]]


def test_labels_in_json_and_texts(tmp_path: Path) -> None:
    digits.write_shards(tmp_path / "a", slice(0, 20), label="label")
    digits.write_shards(tmp_path / "b", slice(0, 20), label="shown")
    by_default = open_labelled(str(tmp_path / "a"), "both", DATA)
    by_name = open_labelled(str(tmp_path / "b"), "text", DATA, "shown")
    assert by_default.labels.tolist() == by_name.labels.tolist() == digits.pictures()[1][:20]
    assert by_default.read(3).text == by_name.read(3).text == b"a digit"
    assert by_default.read(3).image and by_name.read(3).image is None
    assert by_default.identity != by_name.identity


def test_classes_are_numbered_as_in_training(tmp_path: Path) -> None:
    for name in ("ring", "star"):
        (tmp_path / "few" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "few" / name / "1.png")
    few = open_labelled(str(tmp_path / "few"), "image", DATA).of_classes(["circle", "star", "ring"])
    assert few.labels.tolist() == [2, 1]
    with pytest.raises(InputError, match="found the class 'ring', expected one of the 2 classes trained on"):
        few.of_classes(["circle", "star"])


def test_numbers_are_in_their_order(place: Path) -> None:
    some = open_labelled(str(place / "shards" / "train"), "image", DATA).some(50)
    assert (
        len(some) == 50
        and some.labels.tolist()
        == open_labelled(str(place / "shards" / "train"), "image", DATA).some(50).labels.tolist()
    )


def _empty(folder: Path) -> str:
    return str(folder)


def _unlabelled(folder: Path) -> str:
    digits.write_shards(folder / "shards", slice(0, 5), label="other")
    return str(folder / "shards")


def _half_labelled(folder: Path) -> str:
    path = digits.write_shards(folder / "shards", slice(0, 5)) / "00001.tar"
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = len(content := digits.pictures()[0][0])
        tar.addfile(member, io.BytesIO(content))
    return str(folder / "shards")


@pytest.mark.parametrize(
    ("make", "taken", "label", "message"),
    [
        (_empty, "image", None, "found neither shards"),
        (_unlabelled, "image", None, 'has no label; expected a cls member, or the key "label"'),
        (_unlabelled, "image", "cls", "has no label; expected a cls member"),
        (_unlabelled, "image", "wrong", "expected the key 'wrong'"),
        (_half_labelled, "image", None, "sample a has no label"),
        (lambda folder: str(digits.write_folders(folder, slice(0, 9))), "text", None, "--input text needs shards"),
        (lambda folder: str(digits.write_folders(folder, slice(0, 9))), "image", "cls", "leave --label out"),
        (lambda folder: str(folder / "none.tar"), "image", None, "none.tar"),
    ],
)
def test_what_cannot_be_used_is_told(tmp_path: Path, make, taken, label, message: str) -> None:
    with pytest.raises(InputError, match=message) as told:
        open_labelled(make(tmp_path), taken, DATA, label)
    assert "\n" not in str(told.value)


def test_sets_of_the_same_names_and_bytes_are_told_apart(tmp_path: Path) -> None:
    # Tars are padded to blocks: sets of one size are easily of one length, and must not share their kept features.
    one, other = (
        digits.write_shards(tmp_path / name, part) for name, part in (("a", slice(0, 30)), ("b", slice(30, 60)))
    )
    assert (one / "00000.tar").stat().st_size == (other / "00000.tar").stat().st_size
    assert open_labelled(str(one), "image", DATA).identity != open_labelled(str(other), "image", DATA).identity


def test_labels_are_not_asked_for_where_none_are_needed(tmp_path: Path) -> None:
    shards = digits.write_shards(tmp_path / "shards", slice(0, 9), label="other")
    folders = digits.write_folders(tmp_path / "folders", slice(0, 9))
    (tmp_path / "flat").mkdir()
    for number, content in enumerate(digits.pictures()[0][:9]):
        (tmp_path / "flat" / f"{number}.png").write_bytes(content)
    for place in (shards, folders, tmp_path / "flat"):
        found = open_unlabelled(str(place), "image", DATA)
        assert len(found) == 9 and not found.labels.any() and len(found.classes) == 1
        assert {found.read(i).image for i in range(9)} == set(digits.pictures()[0][:9])
    # Labels have no part in which samples these are: features that are kept serve both.
    assert open_unlabelled(str(folders), "image", DATA).identity == open_labelled(str(folders), "image", DATA).identity
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none: found neither shards .* nor images"):
        open_unlabelled(str(tmp_path / "none"), "image", DATA)
    with pytest.raises(InputError, match="--input text needs shards"):
        open_unlabelled(str(folders), "text", DATA)
