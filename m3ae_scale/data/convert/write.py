"""Writes rows as tar shards in img2dataset's layout: each a whole file or none, so that a second call goes on.

    FOLDER/00000.tar ...        000000000.jpg, .txt, .json and .cls (its label) of each sample; images byte for byte
    FOLDER/00000_stats.json     what was written, and which rows were left out and why
    FOLDER/convert.json         the source and the settings; a second call with others is refused
    FOLDER/left_out.jsonl       all rows that were left out
    FOLDER/vocab.txt            word pieces learned from the captions, when asked for

A shard is a function of its rows: neither threads nor restarts change its bytes.
"""

import io
import json
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3ae_scale.data.convert.rows import Row, Rows
from m3ae_scale.data.tar import IMAGE_ENDINGS
from m3ae_scale.data.tokenizer import train_vocabulary
from m3ae_scale.errors import InputError

VOCABULARY_TEXTS = 500_000  # captions that the vocabulary is learned from, evenly spread
THREADS = 8  # reading is what takes the time, and it waits for the disk
_MAGIC = {
    b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif",
}  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    """A row that is in no shard."""

    row: int  # in the source, from 0
    image: str
    reason: str


@dataclass
class Converted:
    """What stands in the folder."""

    samples: int = 0
    shards: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    vocabulary: int | None = None  # word pieces; None: none was asked for


def convert(
    rows: Rows,
    folder: str | Path,
    samples_per_shard: int = 1000,
    missing_limit: float = 0.01,
    vocabulary: int | None = None,
    threads: int = THREADS,
    progress: Callable[[int], object] | None = None,
) -> Converted:
    """Write the shards; those that an earlier call finished are kept, unless images were missing then.

    missing_limit: share of the rows that may be left out, because their image cannot be read or their text is blank
    where a text is all there is.
    vocabulary: word pieces to learn, at most, into FOLDER/vocab.txt.
    progress: called with the number of rows dealt with since the last call; they add up to len(rows).
    Raises InputError past `missing_limit` (the shards stay, and the list of what is missing), for a folder that holds
    another conversion, or one that cannot be written.
    """
    folder = Path(folder)
    if not 1 <= samples_per_shard <= 10_000:
        raise InputError(f"samples per shard: found {samples_per_shard}, expected 1 to 10000")
    _claim(folder, {**rows.identity, "kind": rows.kind, "samples_per_shard": samples_per_shard})
    progress = progress or (lambda count: None)
    texts: list[bytes] = []
    done = Converted()
    seen = 0

    def finish(shard: list[Row], stats: "_Stats") -> None:
        nonlocal seen
        done.left_out += stats.left_out
        if not stats.samples and not done.samples and len(done.left_out) > missing_limit * len(rows):
            first = done.left_out[0]
            raise InputError(
                f"{folder}: none of the first {len(done.left_out)} rows can be used, the first is row {first.row}: "
                f"{_told(first)}; check the columns and the folder that image paths begin at (--images)"
            )
        done.samples += stats.samples
        done.shards += stats.samples > 0
        progress(shard[-1].number + 1 - seen)
        seen = shard[-1].number + 1

    listened = _listen(rows, texts) if vocabulary else iter(rows)
    _write_all(listened, folder, rows.kind == "text", samples_per_shard, threads, finish)
    _save(folder / "left_out.jsonl", "".join(json.dumps(vars(one)) + "\n" for one in done.left_out))
    if vocabulary:
        train_to = folder / "vocab.txt.partial"
        done.vocabulary = train_vocabulary((text.decode("utf-8", "replace") for text in texts), vocabulary, train_to)
        train_to.replace(folder / "vocab.txt")
    _judge(done, missing_limit, folder)
    return done


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings in `folder`, or compare them with those of an earlier call."""
    path = folder / "convert.json"
    wanted = json.loads(json.dumps(settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            stray = next(folder.glob("*.tar"), None)
            if stray:
                raise InputError(f"{stray}: found a shard of something else in the folder; choose another folder")
            _save(path, json.dumps(wanted, indent=1) + "\n")
        found = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{folder}: cannot write there ({error.strerror}); choose another folder") from None
    except ValueError:
        found = {}
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise InputError(
                f"{path}: the folder holds another conversion: {name} was {found.get(name)}, now it is {wanted[name]}; "
                "choose another folder, or delete this one"
            )


def _listen(rows: Rows, texts: list[bytes]) -> Iterator[Row]:
    """Pass rows on, and keep some of their texts."""
    step = -(-len(rows) // VOCABULARY_TEXTS)
    for row in rows:
        if row.text and row.number % step == 0:
            texts.append(row.text)
        yield row


def _write_all(
    rows: Iterator[Row],
    folder: Path,
    text_only: bool,
    samples_per_shard: int,
    threads: int,
    finish: Callable[[list[Row], "_Stats"], None],
) -> None:
    """Write shards on some threads, and call `finish` for each in its order; few shards wait in memory."""
    waiting: deque[tuple[list[Row], Future[_Stats]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number, shard in enumerate(_cut(rows, samples_per_shard)):
                waiting.append((shard, pool.submit(_write, folder / f"{number:05d}.tar", number, shard, text_only)))
                if len(waiting) > threads:
                    first, future = waiting.popleft()
                    finish(first, future.result())
            for shard, future in waiting:
                finish(shard, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _cut(rows: Iterator[Row], size: int) -> Iterator[list[Row]]:
    shard: list[Row] = []
    for row in rows:
        shard.append(row)
        if len(shard) == size:
            yield shard
            shard = []
    if shard:
        yield shard


@dataclass(frozen=True)
class _Stats:
    samples: int
    left_out: list[LeftOut]


def _write(path: Path, number: int, rows: list[Row], text_only: bool) -> _Stats:
    """Write one tar aside, then give it its name: a tar that is there is whole. One without a sample is not written."""
    stats_path = path.with_name(f"{path.stem}_stats.json")
    if path.exists() and (earlier := _read_stats(stats_path)) and not earlier.left_out:
        return earlier
    left_out, samples = [], 0
    aside = path.with_suffix(".partial")
    try:
        with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i, row in enumerate(rows):
                key = f"{number:05d}{i:04d}"
                try:
                    members = _members(row, key, text_only)
                except _Unusable as error:
                    left_out.append(LeftOut(row.number, row.image_name, str(error)))
                    continue
                samples += 1
                for ending, content in members.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")  # no time, no owner: the same bytes every time
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        stats = {"samples": samples, "left_out": [vars(one) for one in left_out]}
        _save(stats_path, json.dumps(stats, indent=1) + "\n")
        if samples:
            aside.replace(path)
        else:
            aside.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot write the shard ({error.strerror}); make room, then run it again") from None
    return _Stats(samples, left_out)


class _Unusable(Exception):
    """A row that makes no sample; its text is the reason."""


def _members(row: Row, key: str, text_only: bool) -> dict[str, bytes]:
    """The files of one sample."""
    if text_only:
        if row.text is None or not row.text.strip():
            raise _Unusable("the text is blank")
        return {"txt": row.text} | ({"json": _json(row, key)} if row.meta else {})
    if row.image is None:
        raise _Unusable("the row names no image")
    try:
        image = row.image()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _Unusable(getattr(error, "strerror", None) or str(error)) from None
    members = {_ending(image, row.image_name): image}
    if row.text is not None:
        members["txt"] = row.text
    members["json"] = _json(row, key)
    if row.label is not None:
        members["cls"] = str(row.label).encode()
    return members


def _json(row: Row, key: str) -> bytes:
    caption = {} if row.text is None else {"caption": row.text.decode("utf-8", "replace")}
    label = {} if row.label is None else {"label": row.label}
    return json.dumps({**row.meta, **caption, **label, "key": key, "status": "success"}).encode()


def _ending(image: bytes, name: str) -> str:
    """The ending by what the file is, whatever its name says."""
    found = next((ending for magic, ending in _MAGIC.items() if image.startswith(magic)), None)
    if found is None and image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        found = "webp"
    named = os.path.splitext(name)[1].lower().removeprefix(".")
    return found or (named if named in IMAGE_ENDINGS else "jpg")


def _read_stats(path: Path) -> _Stats | None:
    try:
        found = json.loads(path.read_text())
        return _Stats(found["samples"], [LeftOut(**one) for one in found["left_out"]])
    except (OSError, ValueError):
        return None


def _save(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".partial")
    part.write_text(text, encoding="utf-8", errors="surrogateescape")
    part.replace(path)


def _judge(done: Converted, limit: float, folder: Path) -> None:
    total = done.samples + len(done.left_out)
    if len(done.left_out) > limit * total:
        first = done.left_out[0]
        raise InputError(
            f"{folder}: {len(done.left_out)} of {total} rows are left out, more than the share of {limit:g} that may "
            f"be; the first is row {first.row}: {_told(first)}; all are in {folder / 'left_out.jsonl'}; mend them and "
            "run it again, or raise --missing-limit"
        )


def _told(one: LeftOut) -> str:
    return f"{one.image}: {one.reason}" if one.image else one.reason
