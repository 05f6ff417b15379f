"""The files: readable by anybody, and no flipped bit, cut or missing file passes for good."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_checkpoint import SHAPES, make_checkpoint, values
from safetensors.numpy import load_file, save_file

from m3ae_scale.engine.checkpoint.files import MappedFile, TensorFile, hash_file
from m3ae_scale.engine.checkpoint.folder import latest_checkpoint
from m3ae_scale.engine.checkpoint.format import KINDS, MANIFEST, Damaged, read_manifest, require_good
from m3ae_scale.errors import InputError

ARRAYS = arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, max_side=5))


@given(st.dictionaries(st.text(max_size=8).filter(lambda t: t != "__metadata__"), ARRAYS, max_size=5))
def test_files_are_safetensors_both_ways(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("files") / "a.safetensors"
    try:
        [name.encode() for name in tensors]
    except UnicodeEncodeError:
        return
    file = TensorFile(path, [(name, array.shape) for name, array in tensors.items()], metadata={"format": "pt"})
    for array in tensors.values():
        file.write(array)
    record = file.finish()
    assert record == hash_file(path)
    theirs, ours = load_file(path), MappedFile(path)
    assert sorted(theirs) == sorted(ours.names) == sorted(tensors)
    for name, array in tensors.items():
        assert theirs[name].tobytes() == ours.array(name).tobytes() == array.tobytes()
        assert theirs[name].shape == ours.array(name).shape == array.shape
    if tensors:
        save_file(tensors, path)  # what the library writes, we read
        assert all(MappedFile(path).array(name).tobytes() == array.tobytes() for name, array in tensors.items())


def test_a_file_takes_what_was_announced_and_nothing_else(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "a.safetensors", [("a", (2, 3)), ("b", (1,))])
    with pytest.raises(ValueError, match="were announced"):
        file.write(np.zeros(5, np.float32))
    file.write(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="1 tensors written, 2 were announced"):
        file.finish()
    file.abandon()


def test_a_checkpoint_reads_back(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 7, cursor={"position": 3})
    manifest = require_good(path)
    assert (manifest.step, manifest.progress, manifest.shapes) == (7, {"step": 7, "cursor": {"position": 3}}, SHAPES)
    for kind in KINDS:
        for name, shape in SHAPES.items():
            array = MappedFile(path / manifest.places[name][kind]).array(name)
            assert np.array_equal(array, values(kind, name, shape, 7))


FILES = [MANIFEST, *(f"{kind}-00001.safetensors" for kind in KINDS)]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the checkpoints of steps 5 and 7."""
    run = tmp_path_factory.mktemp("good")
    make_checkpoint(run, 5)
    make_checkpoint(run, 7)
    return run


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_flipped_bit_is_found(good: Path, name: str, data: st.DataObject) -> None:
    newest = latest_checkpoint(good)
    assert newest is not None
    original = (newest / name).read_bytes()
    bit = data.draw(st.integers(0, 8 * len(original) - 1))
    broken = bytearray(original)
    broken[bit // 8] ^= 1 << bit % 8
    before = read_manifest(newest)
    (newest / name).write_bytes(broken)
    try:
        try:
            after = require_good(newest)
        except Damaged as damage:
            assert name in damage.what
            assert latest_checkpoint(good) == newest.with_name("step_00000005")
        else:  # white space between the manifest's values: it says the same as before
            assert name == MANIFEST and after == before and json.loads(bytes(broken)) == json.loads(original)
    finally:
        (newest / name).write_bytes(original)


@pytest.mark.parametrize("name", FILES)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_torn_file_is_found(good: Path, name: str, share: float) -> None:
    newest = latest_checkpoint(good)
    assert newest is not None
    original = (newest / name).read_bytes()
    torn = original[: int(share * len(original.rstrip()))]
    (newest / name).write_bytes(torn)
    try:
        with pytest.raises(Damaged):
            require_good(newest)
    finally:
        (newest / name).write_bytes(original)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_found(good: Path, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(good, tmp_path / "run")
    newest = latest_checkpoint(run)
    assert newest is not None
    (newest / name).unlink()
    assert latest_checkpoint(run) == newest.with_name("step_00000005")
    said = capfd.readouterr().err
    assert said.startswith("warning: passing over checkpoint step_00000007: ") and name in said


def test_a_newer_format_is_told_apart_from_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3ae_scale.engine.checkpoint.format.FORMAT", 9)
    path = make_checkpoint(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(InputError, match="format 9, this version reads up to 1") as caught:
        read_manifest(path)
    assert not isinstance(caught.value, Damaged)
