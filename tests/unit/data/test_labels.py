"""Labelled scenes: classes that captions do not name but inform about, and what scenes can be narrowed to."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from m3ae_scale.data.scenes.scene import CLASSES, COLOURS, FAMILIES, SHAPES, TONES
from m3ae_scale.data.synthesize import Synthesis, synthesize
from m3ae_scale.errors import InputError

SETTINGS = Synthesis(samples=60, label="family", vague=0.3, image_size=(32, 32), vocabulary=400)


def samples(folder: Path) -> list[dict[str, str]]:
    with tarfile.open(folder / "train" / "paired" / "00000.tar") as tar:
        found: dict[str, dict[str, str]] = {}
        for member in tar:
            key, _, ending = member.name.partition(".")
            if ending != "jpg":
                found.setdefault(key, {})[ending] = tar.extractfile(member).read().decode()
    return list(found.values())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    synthesize(folder, SETTINGS, processes=1)
    return folder


def test_families_and_tones_divide_what_there_is() -> None:
    for parts, whole in ((FAMILIES, SHAPES), (TONES, COLOURS)):
        assert sorted(name for part in parts.values() for name in part) == sorted(whole)


def test_the_class_is_that_of_the_scene_and_no_caption_names_it(written: Path) -> None:
    for sample in samples(written):
        family, tone = CLASSES["family"][int(sample["cls"])].split()
        truth = json.loads(sample["json"])
        assert truth["shape"] in FAMILIES[family] and truth["colour"] in TONES[tone]
        assert len({(thing["shape"], thing["colour"]) for thing in truth["objects"]}) == 1
        assert not {family, tone} & set(sample["txt"].split())


def test_captions_inform_but_not_always(written: Path) -> None:
    named = [json.loads(sample["json"])["shape"][:4] in sample["txt"] for sample in samples(written)]
    assert 0.45 < sum(named) / len(named) < 0.95


def test_shuffled_captions_are_those_of_the_next(written: Path, tmp_path: Path) -> None:
    synthesize(tmp_path / "shuffled", replace(SETTINGS, shuffled_captions=True), processes=1)
    true, shuffled = samples(written), samples(tmp_path / "shuffled")
    assert [s["txt"] for s in shuffled] == [s["txt"] for s in true[1:] + true[:1]]
    assert [s["cls"] for s in shuffled] == [s["cls"] for s in true]


def test_scenes_are_drawn_from_what_is_asked_for(tmp_path: Path) -> None:
    few = replace(SETTINGS, shapes=("star", "ring"), backgrounds=("night",), label="")
    synthesize(tmp_path, few, processes=1)
    truths = [json.loads(sample["json"]) for sample in samples(tmp_path)]
    assert {thing["shape"] for truth in truths for thing in truth["objects"]} == {"star", "ring"}
    assert {truth["background"] for truth in truths} == {"night"}
    assert "cls" not in samples(tmp_path)[0]


def test_a_folder_of_other_settings_is_refused(written: Path) -> None:
    with pytest.raises(InputError, match="vague"):
        synthesize(written, replace(SETTINGS, vague=0.0), processes=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "size"}, "label: found 'size'"),
        ({"shapes": ("star", "blob")}, "shapes: found 'blob'"),
        ({"backgrounds": ("moon",)}, "backgrounds: found 'moon'"),
        ({"shapes": ("star",), "label": ""}, "two or more"),
        ({"vague": 2.0}, "vague: found 2.0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SETTINGS, **change)


def test_one_large_thing_may_be_all_there_is(tmp_path: Path) -> None:
    synthesize(tmp_path, replace(SETTINGS, samples=20, one_large=True), processes=1)
    for truth in (json.loads(sample["json"]) for sample in samples(tmp_path)):
        assert truth["count"] == 1 and truth["size"] == "large" and truth["place"]
