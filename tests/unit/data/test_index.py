"""The index of shards: what it holds, when it is made anew, and what it costs when nothing has changed."""

import os
import stat
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from made_shards import experiment, jpeg, sample_members, write_shards, write_tar

import m3ae_scale.data.index as index_module
from m3ae_scale.config import Experiment
from m3ae_scale.data.index import INDEX_NAME, IndexedSource, index_source
from m3ae_scale.data.index_file import IndexFile
from m3ae_scale.data.tar import list_samples


def indexed(base: Experiment) -> IndexedSource:
    return index_source(base.data.sources[0], base.data)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", [3, 5, 2])


@pytest.fixture
def base(tmp_path: Path, shards: Path) -> Experiment:
    return experiment(tmp_path, [{"name": "pairs", "shards": str(shards)}])


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the shards that are listed from now on."""
    seen: list[str] = []

    def spy(path: Path) -> object:
        seen.append(Path(path).name)
        return list_samples(path)

    monkeypatch.setattr(index_module, "list_samples", spy)
    return seen


NAMES = st.text("ab/.é 漢", min_size=1, max_size=120).filter(lambda name: not name.endswith("/"))


@given(st.lists(st.tuples(NAMES, st.sampled_from(["jpg", "txt", "json", "cls"]), st.binary(max_size=1500))))
@settings(max_examples=40)
def test_an_index_finds_the_bytes_that_tarfile_finds(members: list[tuple[str, str, bytes]]) -> None:
    """Any names, long, repeated and not in ASCII, any sizes: offset and length in the index give the member."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "0.tar", [(f"{name}.{ending}", data) for name, ending, data in members])
        listing = list_samples(path)
        assert listing.damage == ""
        raw = path.read_bytes()
        found = [
            raw[int(row[f"{kind}_block"]) * 512 :][: int(row[f"{kind}_bytes"])]
            for row in listing.samples
            for kind in ("image", "text", "meta")
            if row[f"{kind}_block"]
        ]
        with tarfile.open(path) as tar:
            wanted = {}
            for member in tar:
                stem = member.name.rpartition("/")[2].partition(".")
                if stem[0] and stem[2].lower() in ("jpg", "txt", "json"):
                    wanted[member.offset_data] = tar.extractfile(member).read()  # type: ignore[union-attr]
        assert sorted(found) == sorted(wanted.values())


def test_webdataset_finds_the_same_samples(tmp_path: Path) -> None:
    """A shard that WebDataset wrote, nested keys and dots in names included, read by WebDataset and by the index."""
    keys = ["000", "a/b", "a/b/c", "dots.in/name"]
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        for number, key in enumerate(keys):
            text = f"text {number}"
            writer.write({"__key__": key, "jpg": jpeg(number), "txt": text, "json": {"n": number}, "seg.png": b"-"})
    source = indexed(experiment(tmp_path, [{"name": "pairs", "shards": str(tmp_path / "0.tar")}]))
    raw = (tmp_path / "0.tar").read_bytes()
    ours = {}
    for i in range(len(keys)):
        entry = source.entry(0, i)
        ours[entry.key] = [raw[start : start + size] for start, size in (entry.image, entry.text, entry.meta)]
    theirs = webdataset.WebDataset(str(tmp_path / "0.tar"), shardshuffle=False)
    assert ours == {sample["__key__"]: [sample[ending] for ending in ("jpg", "txt", "json")] for sample in theirs}
    assert list(ours) == keys


def test_entries_are_the_samples(base: Experiment) -> None:
    source = indexed(base)
    assert source.names == ["00000.tar", "00001.tar", "00002.tar"]
    assert source.counts.tolist() == [3, 5, 2]
    keys = [source.entry(shard, i).key for shard, count in enumerate(source.counts) for i in range(count)]
    assert keys == [f"{n:06d}" for n in range(10)]
    entry = source.entry(1, 2)
    assert entry.image is not None and entry.meta is None
    offset, size = entry.image
    assert Path(source.locations[1]).read_bytes()[offset : offset + size] == jpeg(5)
    assert (source.total("samples"), source.total("images"), source.total("texts")) == (10, 10, 10)


def test_nothing_is_listed_twice(base: Experiment, listed: list[str]) -> None:
    indexed(base)
    assert sorted(listed) == ["00000.tar", "00001.tar", "00002.tar"]
    indexed(base)
    assert len(listed) == 3


def test_only_what_changed_is_listed_again(base: Experiment, shards: Path, listed: list[str]) -> None:
    indexed(base)
    listed.clear()
    os.utime(shards / "00000.tar", ns=(1, 1))  # the same size at another time
    write_tar(shards / "00001.tar", sample_members("new", 1))
    (shards / "00002.tar").unlink()
    write_tar(shards / "00003.tar", [m for n in range(4) for m in sample_members(f"more{n}", n)])
    source = indexed(base)
    assert sorted(listed) == ["00000.tar", "00001.tar", "00003.tar"]
    assert source.counts.tolist() == [3, 1, 4]
    assert source.entry(1, 0).key == "new"
    assert IndexFile(shards / INDEX_NAME).names.count("00002.tar") == 0


def test_a_part_of_a_folder_keeps_the_rest_of_its_index(base: Experiment, shards: Path, listed: list[str]) -> None:
    part = base.data.sources[0].model_copy(update={"shards": str(shards / "00001.tar")})
    index_source(part, base.data)
    indexed(base)
    index_source(part, base.data)
    assert sorted(listed) == ["00000.tar", "00001.tar", "00002.tar"]


@pytest.mark.parametrize("content", [b"", b"no index at all", b"x" * 5000])
def test_a_broken_index_is_made_anew(base: Experiment, shards: Path, content: bytes) -> None:
    (shards / INDEX_NAME).write_bytes(content)
    assert indexed(base).counts.tolist() == [3, 5, 2]
    assert IndexFile(shards / INDEX_NAME).names == ["00000.tar", "00001.tar", "00002.tar"]


@pytest.mark.parametrize("cut", [1, 40, 200, 1000])
def test_a_cut_index_is_made_anew(base: Experiment, shards: Path, cut: int) -> None:
    indexed(base)
    whole = (shards / INDEX_NAME).read_bytes()
    (shards / INDEX_NAME).write_bytes(whole[:-cut])
    assert indexed(base).counts.tolist() == [3, 5, 2]
    assert (shards / INDEX_NAME).read_bytes() == whole


def test_a_folder_that_cannot_be_written_has_its_index_in_the_cache(
    base: Experiment, shards: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    for _ in range(2):
        assert indexed(base).counts.tolist() == [3, 5, 2]
    assert len(listed) == 3
    assert not (shards / INDEX_NAME).exists()


def test_other_people_may_read_the_index(base: Experiment, shards: Path) -> None:
    indexed(base)
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((shards / INDEX_NAME).stat().st_mode) == 0o666 & ~umask


def test_ranks_that_start_together_list_once(base: Experiment, listed: list[str]) -> None:
    with ThreadPoolExecutor(4) as threads:
        sources = list(threads.map(lambda _: indexed(base), range(4)))
    assert len(listed) == 3
    assert len({source.digest() for source in sources}) == 1


def test_many_shards_are_listed_in_parallel_with_the_same_result(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "many", [1, 2, 0, 3] * 5)
    base = experiment(tmp_path, [{"name": "pairs", "shards": str(folder)}])
    source = indexed(base)
    assert source.counts.tolist() == [1, 2, 0, 3] * 5
    assert source.entry(19, 2).key == "000029"


def test_the_digest_knows_names_and_counts_but_not_the_place(tmp_path: Path) -> None:
    def digest(folder: str, counts: list[int]) -> str:
        base = experiment(tmp_path, [{"name": "p", "shards": str(write_shards(tmp_path / folder, counts))}])
        return indexed(base).digest()

    assert digest("a", [2, 3]) == digest("b", [2, 3]) != digest("c", [3, 2])


def test_an_opened_index_crosses_to_a_spawned_process(base: Experiment) -> None:
    source = indexed(base)
    source.entry(0, 0)
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(source.entry, (1, 2)).key == "000005"


def test_rows_are_mapped_not_read(base: Experiment) -> None:
    source = indexed(base)
    assert "_mapped" not in vars(source.files[0])
    assert isinstance(source.rows(0), np.ndarray)
    assert "_mapped" in vars(source.files[0])
