"""Own data as shards: every format gives the bytes that went in, a second call goes on, mistakes are told by name."""

import csv
import json
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import jpeg

from m3ae_scale.data.convert import Converted, Row, convert, open_rows
from m3ae_scale.data.tar import list_samples
from m3ae_scale.data.tokenizer import load_tokenizer
from m3ae_scale.errors import InputError

CAPTIONS = ["a red square, of course", 'the "blue" one', "grün\nand tall", "", "white"]
IMAGES = [jpeg(i) for i in range(len(CAPTIONS))]


def members(folder: Path) -> list[dict[str, bytes]]:
    """The samples of all shards of a folder, in order: ending -> bytes."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(folder.glob("*.tar")):
        assert not list_samples(shard).damage
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                found.setdefault(key, {})[ending] = tar.extractfile(member).read()
    return list(found.values())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(IMAGES):
        (folder / f"{i}.jpg").write_bytes(image)
    return folder


def records() -> list[dict[str, Any]]:
    return [{"file": f"{i}.jpg", "caption": caption, "stars": i} for i, caption in enumerate(CAPTIONS)]


def write_csv(path: Path, separator: str = ",") -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "caption", "stars"], delimiter=separator)
        writer.writeheader()
        writer.writerows(records())


def write_parquet_with_bytes(path: Path) -> None:
    rows = [{**r, "file": {"bytes": IMAGES[i], "path": "elsewhere.jpg"}} for i, r in enumerate(records())]
    pq.write_table(pa.Table.from_pylist(rows).rename_columns({"file": "image"}), path)


TABLES: dict[str, Callable[[Path], None]] = {
    "t.csv": write_csv,
    "t.tsv": lambda path: write_csv(path, "\t"),
    "semicolon.csv": lambda path: write_csv(path, ";"),
    "t.jsonl": lambda path: path.write_text("".join(json.dumps(record) + "\n\n" for record in records())) and None,
    "t.parquet": lambda path: pq.write_table(pa.Table.from_pylist(records()), path),
    "bytes.parquet": write_parquet_with_bytes,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_becomes_pairs_byte_for_byte(name: str, photos: Path, tmp_path: Path) -> None:
    TABLES[name](photos / name)
    done = convert(open_rows(photos / name), tmp_path / "out", samples_per_shard=2)
    assert (done.samples, done.shards, done.left_out) == (5, 3, [])
    for i, sample in enumerate(members(tmp_path / "out")):
        assert (sample["jpg"], sample["txt"].decode()) == (IMAGES[i], CAPTIONS[i])
        meta = json.loads(sample["json"])
        assert meta["caption"] == CAPTIONS[i] and int(meta["stars"]) == i
        assert meta["key"] == f"{i // 2:05d}{i % 2:04d}"


def test_a_folder_is_read_by_the_tables_in_it(photos: Path, tmp_path: Path) -> None:
    for part in (0, 1):
        pq.write_table(pa.Table.from_pylist(records()[part * 3 : part * 3 + 3]), photos / f"part{part}.parquet")
    convert(open_rows(photos), tmp_path / "out")
    assert [sample["jpg"] for sample in members(tmp_path / "out")] == IMAGES
    write_csv(photos / "t.csv")
    with pytest.raises(InputError, match=r"found the tables part0.parquet, part1.parquet, t.csv"):
        open_rows(photos)


def test_each_of_several_captions_is_a_sample(photos: Path, tmp_path: Path) -> None:
    (photos / "t.jsonl").write_text(json.dumps({"image": "3.jpg", "captions": ["one", "two"]}))
    convert(open_rows(photos / "t.jsonl"), tmp_path / "out")
    assert [(sample["jpg"], sample["txt"]) for sample in members(tmp_path / "out")] == [
        (IMAGES[3], b"one"),
        (IMAGES[3], b"two"),
    ]


@pytest.mark.parametrize("kind", ["image", "text"])
def test_one_half_of_a_table(kind: Any, photos: Path, tmp_path: Path) -> None:
    write_csv(photos / "t.csv")
    done = convert(open_rows(photos / "t.csv", kind=kind), tmp_path / "out", missing_limit=0.5)
    found = members(tmp_path / "out")
    if kind == "image":
        assert [sample["jpg"] for sample in found] == IMAGES and "txt" not in found[0]
    else:
        assert [sample["txt"].decode() for sample in found] == [caption for caption in CAPTIONS if caption]
        assert [(one.row, one.reason) for one in done.left_out] == [(3, "the text is blank")]


def test_hdf5_of_m3ae_public(tmp_path: Path) -> None:
    as_bytes = [np.frombuffer(caption.encode(), np.uint8) for caption in CAPTIONS]
    with h5py.File(tmp_path / "cc.hdf5", "w") as file:
        for name, values in (("jpg", [np.frombuffer(i, np.uint8) for i in IMAGES]), ("caption", as_bytes)):
            data = file.create_dataset(name, (5,), dtype=h5py.vlen_dtype(np.uint8))
            for i, value in enumerate(values):
                data[i] = value
    with h5py.File(tmp_path / "text.hdf5", "w") as file:
        file["text"] = np.array([b"one text", b"another"], dtype="S10")
    with h5py.File(tmp_path / "imagenet.hdf5", "w") as file:
        for split in ("train", "val"):
            data = file.create_dataset(f"{split}_jpg", (5,), dtype=h5py.vlen_dtype(np.uint8))
            for i, image in enumerate(IMAGES):
                data[i] = np.frombuffer(image, np.uint8)
            file[f"{split}_labels"] = np.arange(5) * 7

    rows = open_rows(tmp_path / "cc.hdf5")
    assert rows.kind == "paired" and convert(rows, tmp_path / "cc", samples_per_shard=3).samples == 5
    assert [(s["jpg"], s["txt"].decode()) for s in members(tmp_path / "cc")] == list(zip(IMAGES, CAPTIONS, strict=True))

    rows = open_rows(tmp_path / "text.hdf5")
    assert rows.kind == "text" and convert(rows, tmp_path / "text").samples == 2
    assert [sample["txt"] for sample in members(tmp_path / "text")] == [b"one text", b"another"]

    with pytest.raises(InputError, match=r"found the splits train, val; choose one with --split"):
        open_rows(tmp_path / "imagenet.hdf5")
    rows = open_rows(tmp_path / "imagenet.hdf5", split="val")
    assert rows.kind == "image"
    convert(rows, tmp_path / "val")
    assert [int(sample["cls"]) for sample in members(tmp_path / "val")] == [0, 7, 14, 21, 28]
    assert json.loads(members(tmp_path / "val")[1]["json"])["label"] == 7


def test_a_folder_of_classes(tmp_path: Path) -> None:
    root = tmp_path / "imagenet" / "train"
    for name, numbers in {"tench": range(3), "cock": range(3, 5)}.items():
        (root / name).mkdir(parents=True)
        for i in numbers:
            (root / name / f"{i}.JPEG").write_bytes(IMAGES[i])
    rows = open_rows(root)
    convert(rows, tmp_path / "out")
    found = members(tmp_path / "out")
    assert {sample["jpg"] for sample in found} == set(IMAGES)
    for sample in found:
        meta = json.loads(sample["json"])
        wanted = ("tench", 1) if IMAGES.index(sample["jpg"]) < 3 else ("cock", 0)
        assert (meta["class"], meta["label"]) == wanted and int(sample["cls"]) == wanted[1]
    assert json.loads((tmp_path / "out" / "convert.json").read_text())["classes"] == ["cock", "tench"]
    with pytest.raises(InputError, match=r"imagenet/train: found folders, expected the images of one class"):
        open_rows(root.parent)


def test_the_ending_says_what_the_file_is(tmp_path: Path) -> None:
    from PIL import Image

    for name, fmt in (("a.jpg", "PNG"), ("b", "JPEG"), ("c.img", "WEBP"), ("d.png", "GIF")):
        Image.new("RGB", (8, 8)).save(tmp_path / name, fmt)
    (tmp_path / "t.csv").write_text("path,text\na.jpg,x\nb,x\nc.img,x\nd.png,x\n")
    convert(open_rows(tmp_path / "t.csv"), tmp_path / "out")
    assert [next(iter(sample)) for sample in members(tmp_path / "out")] == ["png", "jpg", "webp", "gif"]


class Interrupted(Exception):
    pass


@settings(max_examples=15)
@given(stop=st.integers(0, 16), size=st.integers(1, 7), threads=st.sampled_from([1, 3]))
def test_an_interrupted_conversion_goes_on(
    tmp_path_factory: pytest.TempPathFactory, stop: int, size: int, threads: int
) -> None:
    class Numbers:
        kind: Any = "text"
        identity = {"numbers": 17}
        broken = True

        def __len__(self) -> int:
            return 17

        def __iter__(self) -> Iterable[Row]:
            for i in range(17):
                if i == stop and self.broken:
                    raise Interrupted
                yield Row(i, text=f"text {i}".encode())

    once, twice = tmp_path_factory.mktemp("once"), tmp_path_factory.mktemp("twice")
    rows = Numbers()
    with pytest.raises(Interrupted):
        convert(rows, twice, size, threads=threads)
    kept = {path.name: path.stat().st_ino for path in twice.glob("*.tar")}
    rows.broken = False
    advanced: list[int] = []
    done = convert(rows, twice, size, threads=threads, progress=advanced.append)
    assert done.samples == sum(advanced) == 17
    assert {name: (twice / name).stat().st_ino for name in kept} == kept  # not written again
    convert(rows, once, size)
    assert contents(once) == contents(twice)


def test_missing_images_are_collected_and_tried_again(photos: Path, tmp_path: Path) -> None:
    write_csv(photos / "t.csv")
    (photos / "1.jpg").rename(tmp_path / "kept.jpg")
    out = tmp_path / "out"
    with pytest.raises(
        InputError, match=r"out: 1 of 5 rows are left out, more than the share of 0.01 .* row 1: .*1.jpg: No"
    ):
        convert(open_rows(photos / "t.csv"), out, samples_per_shard=2)
    done = convert(open_rows(photos / "t.csv"), out, samples_per_shard=2, missing_limit=0.2)
    assert (done.samples, [one.row for one in done.left_out]) == (4, [1])
    assert json.loads((out / "left_out.jsonl").read_text())["reason"] == "No such file or directory"
    (tmp_path / "kept.jpg").rename(photos / "1.jpg")
    assert convert(open_rows(photos / "t.csv"), out, samples_per_shard=2).samples == 5
    assert [sample["jpg"] for sample in members(out)] == IMAGES


def test_a_wrong_folder_of_images_is_told_at_once(photos: Path, tmp_path: Path) -> None:
    write_csv(photos / "t.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"none of the first 2 rows can be used, .*empty/0.jpg: No such file"):
        convert(open_rows(photos / "t.csv", images=tmp_path / "empty"), tmp_path / "out", samples_per_shard=2)


def test_a_folder_holds_one_conversion(photos: Path, tmp_path: Path) -> None:
    write_csv(photos / "t.csv")
    convert(open_rows(photos / "t.csv"), tmp_path / "out")
    with pytest.raises(InputError, match=r"another conversion: samples_per_shard was 1000, now it is 2"):
        convert(open_rows(photos / "t.csv"), tmp_path / "out", samples_per_shard=2)
    (tmp_path / "out" / "convert.json").unlink()
    with pytest.raises(InputError, match=r"00000.tar: found a shard of something else"):
        convert(open_rows(photos / "t.csv"), tmp_path / "out")


def test_a_vocabulary_of_the_captions(photos: Path, tmp_path: Path) -> None:
    write_csv(photos / "t.csv")
    done: Converted = convert(open_rows(photos / "t.csv"), tmp_path / "out", vocabulary=100)
    tokenizer = load_tokenizer(tmp_path / "out" / "vocab.txt")
    assert tokenizer.size == done.vocabulary
    assert "[UNK]" not in tokenizer.words_of(tokenizer.encode("the red square", 8))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "url,alt\nx,y\n", r"t.csv: found the columns url, alt; none has a usual name for images"),
        (
            "t.csv",
            "file,words\nx,y\n",
            r"found the columns file, words; none has a usual name for captions .*--caption-c",
        ),
        ("t.csv", "file,caption\nx,a, b\n", r"t.csv:2: found 3 fields, expected 2 \(file, caption\); put quotes"),
        ("t.csv", "file,caption\n", r"t.csv: found no row"),
        ("t.jsonl", '{"file": 1, "text": 2}\n{"file"\n', r"t.jsonl:2: found no JSON"),
        ("t.jsonl", "[1]\n", r"t.jsonl:1: found a list, expected one JSON object a line"),
        ("t.parquet", "no", r"t.parquet: cannot read the table"),
        ("t.h5", "no", r"t.h5: cannot read it as HDF5"),
        ("t.xls", "no", r"t.xls: found a file ending in .xls, expected a table"),
    ],
)
def test_a_mistake_is_told(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        open_rows(tmp_path / name)


def test_options_of_another_format(photos: Path, tmp_path: Path) -> None:
    write_csv(photos / "t.csv")
    with pytest.raises(InputError, match=r"--split: found val, but .*t.csv is a table"):
        open_rows(photos / "t.csv", split="val")
    with pytest.raises(InputError, match=r"t.csv: found no column 'img', expected one of file, caption, stars"):
        open_rows(photos / "t.csv", image_column="img")
    with pytest.raises(InputError, match=r"nowhere: found no such file or folder"):
        open_rows(tmp_path / "nowhere")


@pytest.mark.parametrize(("module", "name"), [("h5py", "x.h5"), ("pyarrow", "x.parquet")])
def test_a_missing_package_is_named(module: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'm3ae_scale\[convert\]'"):
        open_rows(tmp_path / name)
