"""Verifying: what training could not use is found, all of it, and a second call reads only what is new."""

import json
import os
from pathlib import Path

import pytest
from made_shards import experiment, jpeg, sample_members, write_shards, write_tar

from m3ae_scale.data.index import INDEX_NAME, index_source
from m3ae_scale.data.loader import open_training
from m3ae_scale.data.section import data_section
from m3ae_scale.data.verify import count_shards, verify
from m3ae_scale.errors import InputError


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three good shards and one with four bad samples among eight."""
    folder = write_shards(tmp_path / "shards", [6, 6, 6])
    members = [member for i in range(4) for member in sample_members(f"good{i}", i)]
    members += [("cut.jpg", jpeg(1)[:-40]), ("cut.txt", b"a cut image")]
    members += [("empty.jpg", b""), ("empty.txt", b"no image")]
    members += [("latin.jpg", jpeg(2)), ("latin.txt", "grün".encode("latin1"))]
    members += [("alone.jpg", jpeg(3))]
    write_tar(folder / "00003.tar", members)
    return folder


def test_every_bad_sample_is_found(shards: Path, tmp_path: Path) -> None:
    section = data_section([str(shards)])
    assert count_shards(section) == 4
    advanced: list[int] = []
    found = verify(section, tmp_path / "record.jsonl", progress=advanced.append)
    assert (found.samples, sum(advanced)) == (26, 4)
    assert {(bad.shard, bad.key) for bad in found.bad} == {
        ("00003.tar", key) for key in ("cut", "empty", "latin", "alone")
    }
    assert [failure.split(",")[0] for failure in found.failures()] == [
        "data source shards: 4 of 26 samples cannot be used"
    ]
    assert not verify(section, tmp_path / "record.jsonl", limit=0.2).failures()


@pytest.mark.parametrize("processes", [1, 3])
def test_it_agrees_with_training(shards: Path, tmp_path: Path, processes: int) -> None:
    found = verify(data_section([str(shards)]), tmp_path / "record.jsonl", processes=processes)
    sources = [{"name": "shards", "shards": str(shards)}]
    data = open_training(
        experiment(tmp_path, sources, global_batch=13, bad_sample_limit=1.0),
        data_rank=0, data_world=1, micro_batch=13, accumulation=1, quarantine_folder=tmp_path / "run",
    )  # fmt: skip
    for _, _ in zip(range(2), data, strict=False):  # one epoch
        pass
    met = [json.loads(line) for line in (tmp_path / "run" / "quarantine-rank0.jsonl").read_text().splitlines()]
    assert {(bad["shard"], bad["key"]) for bad in met} == {(bad.shard, bad.key) for bad in found.bad}


def test_a_second_call_reads_only_what_changed(shards: Path, tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    first = verify(data_section([str(shards)]), record)
    with record.open("a") as file:
        file.write('{"source": "a line that a crash cut')
    again = verify(data_section([str(shards)]), record)
    assert (first.known, again.known) == (0, 4) and first.bad == again.bad
    record.write_text("\n".join(record.read_text().splitlines()[:2]) + "\n")
    write_tar(shards / "00003.tar", sample_members("mended", 1))
    mended = verify(data_section([str(shards)]), record)
    assert mended.bad == [] and mended.known <= 2


def test_shards_that_cannot_be_read(shards: Path, tmp_path: Path) -> None:
    whole = (shards / "00000.tar").read_bytes()
    (shards / "00000.tar").write_bytes(whole[: len(whole) // 2])
    (shards / "00001.tar").write_bytes(b"this is no tar" * 100)
    patterns = [str(shards / "{00000..00002}.tar"), str(shards / "{00004..00005}.tar")]
    found = verify(data_section(patterns), tmp_path / "record.jsonl", limit=1.0)
    told = {Path(v.location).name: v.damage for v in found.verdicts if v.damage}
    assert "truncated after" in told["00000.tar"]
    assert "expected a tar shard" in told["00001.tar"]
    assert told["00004.tar"] == told["00005.tar"] == "cannot read the shard: No such file or directory"
    assert len(found.failures()) == 4
    (shards / "00000.tar").write_bytes(whole)  # what was damaged is not taken from the record
    assert len(verify(data_section(patterns), tmp_path / "record.jsonl", limit=1.0).failures()) == 3


def test_a_stale_index_is_told_and_a_false_one_fails(shards: Path, tmp_path: Path) -> None:
    made = experiment(tmp_path, [{"name": "s", "shards": str(shards)}])
    index_source(made.data.sources[0], made.data)
    assert (shards / INDEX_NAME).exists()
    write_tar(shards / "00001.tar", sample_members("new", 1))
    found = verify(made.data, tmp_path / "a.jsonl", limit=1.0)
    assert [Path(v.location).name for v in found.verdicts if v.stale] == ["00001.tar"]
    assert not found.failures()

    state = (shards / "00002.tar").stat()
    members = [member for i in range(6) for member in sample_members(f"other{i}", i)]
    write_tar(shards / "00002.tar", members)
    with (shards / "00002.tar").open("ab") as file:
        file.truncate(state.st_size)
    os.utime(shards / "00002.tar", ns=(state.st_atime_ns, state.st_mtime_ns))
    failures = verify(made.data, tmp_path / "b.jsonl", limit=1.0).failures()
    assert len(failures) == 1 and "00002.tar: holds 6 samples that are not the 6 of its index" in failures[0]


def test_the_kind_is_what_most_samples_of_a_folder_are(tmp_path: Path) -> None:
    for kind in ("paired", "image", "text"):
        write_shards(tmp_path / "data" / kind, [5, 5], kind)
    section = data_section([str(tmp_path / "data")])
    assert {source.name: source.kind for source in section.sources} == {
        "paired": "paired", "image": "image", "text": "text",
    }  # fmt: skip
    assert not verify(section, tmp_path / "record.jsonl").bad
    asked = data_section([str(tmp_path / "data" / "image")], kind="paired")
    assert len(verify(asked, tmp_path / "record.jsonl").bad) == 10


def test_a_record_that_cannot_be_written(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write the record .*; name another with --record"):
        verify(data_section([str(shards)]), tmp_path / "file" / "record.jsonl")
