"""The index of shards: which samples each holds, where their members lie; one file a folder, memory-mapped.

A training start reads one table with a row per shard; rows of samples are touched when a sample is read. The index
lies beside the shards (`m3ae-scale.index`), or in the cache when that folder cannot be written or is behind a URL; an
index that lies beside remote shards is used. A shard whose size or time of change differs is listed again.

The file: MAGIC; per shard its sample rows and joined keys; the shard table; names and damages; TAIL.
"""

import hashlib
import mmap
import os
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m3ae_scale.config.schema import DataConfig, SourceConfig
from m3ae_scale.data.remote import Cache, ShardError, fetch, is_remote
from m3ae_scale.data.sample import Kind
from m3ae_scale.data.shards import find_shards, short_names
from m3ae_scale.data.tar import BLOCK, SAMPLE, Listing, NotATar, list_samples
from m3ae_scale.errors import InputError

INDEX_NAME = "m3ae-scale.index"
_WORTH_A_BAR = 50  # shards to list
_MAGIC = b"m3ae-index-v001\n"
_TAIL = struct.Struct("<QQQ16s")  # where the shard table begins, shards, bytes of the names, magic
_SHARD = np.dtype(
    [
        ("bytes", "<i8"),  # of the shard
        ("mtime_ns", "<i8"),  # of the shard; 0: not known
        ("start", "<i8"),  # of its sample rows in the index
        ("samples", "<i8"),
        ("images", "<i8"),  # samples that have one
        ("texts", "<i8"),  # samples that have one
        ("keys_bytes", "<i8"),
    ]
)


@dataclass(frozen=True)
class Entry:
    """One sample: (offset, bytes) of each member in the shard; None: it has no such member."""

    key: str
    image: tuple[int, int] | None
    text: tuple[int, int] | None
    meta: tuple[int, int] | None


class IndexFile:
    """One index file, opened: the shard table in memory, the rest mapped when it is touched."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            file.seek(-_TAIL.size, os.SEEK_END)
            table_start, shards, name_bytes, magic = _TAIL.unpack(file.read(_TAIL.size))
            if magic != _MAGIC:
                raise ValueError("not an index of this version")
            file.seek(table_start)
            self.table = np.frombuffer(file.read(shards * _SHARD.itemsize), dtype=_SHARD)
            self.names = _split(file.read(name_bytes), shards)
            self.damages = _split(file.read()[: -_TAIL.size], shards)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_mapped"}

    @cached_property
    def _mapped(self) -> mmap.mmap:
        with self.path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def samples(self, shard: int) -> np.ndarray:
        """Return (samples,) of dtype SAMPLE."""
        row = self.table[shard]
        return np.frombuffer(self._mapped, dtype=SAMPLE, count=int(row["samples"]), offset=int(row["start"]))

    def listing(self, shard: int) -> Listing:
        """Return what `list_samples` returned for the shard."""
        row = self.table[shard]
        start = int(row["start"]) + int(row["samples"]) * SAMPLE.itemsize
        return Listing(self.samples(shard), self._mapped[start : start + int(row["keys_bytes"])], self.damages[shard])

    def entry(self, shard: int, index: int) -> Entry:
        """Return where sample `index` of the shard lies."""
        row = self.table[shard]
        start = int(row["start"]) + int(row["samples"]) * SAMPLE.itemsize
        return entry_of(self.samples(shard), self._mapped, index, start)


def entry_of(samples: np.ndarray, keys: bytes | mmap.mmap, index: int, start: int = 0) -> Entry:
    """Return where sample `index` lies, by the listing of its shard; its joined keys begin at `start` in `keys`."""
    sample = samples[index]
    key_start = int(samples[index - 1]["key_end"]) if index else 0
    key = keys[start + key_start : start + int(sample["key_end"])]

    def member(name: str) -> tuple[int, int] | None:
        block = int(sample[f"{name}_block"])
        return (block * BLOCK, int(sample[f"{name}_bytes"])) if block else None

    return Entry(key.decode("utf-8", "replace"), member("image"), member("text"), member("meta"))


@dataclass(frozen=True)
class IndexedSource:
    """A source whose shards are found and listed."""

    name: str
    kind: Kind
    weight: float
    locations: list[str]  # of its shards: paths and URLs, sorted
    names: list[str]  # of its shards: short, and the same when the data has moved
    counts: np.ndarray  # (shards,) int64: samples
    files: list[IndexFile]
    file_of: np.ndarray  # (shards,) int32: which of the files
    row_of: np.ndarray  # (shards,) int32: which row of its table

    def entry(self, shard: int, index: int) -> Entry:
        """Return where a sample lies in its shard."""
        return self.files[self.file_of[shard]].entry(int(self.row_of[shard]), index)

    def rows(self, shard: int) -> np.ndarray:
        """Return (samples,) of dtype SAMPLE."""
        return self.files[self.file_of[shard]].samples(int(self.row_of[shard]))

    def total(self, column: str) -> int:
        """Return the sum of a column of the shard table ("samples", "images", "texts")."""
        return sum(int(f.table[column][self.row_of[self.file_of == i]].sum()) for i, f in enumerate(self.files))

    def damages(self) -> list[tuple[str, str]]:
        """Return (shard, what is wrong with it) of each damaged shard."""
        found = (
            (name, self.files[f].damages[r]) for name, f, r in zip(self.names, self.file_of, self.row_of, strict=True)
        )
        return [(name, damage) for name, damage in found if damage]

    def bytes_of(self, shard: int) -> int:
        """Return the bytes of the shard when it was listed."""
        return int(self.files[self.file_of[shard]].table["bytes"][self.row_of[shard]])

    def digest(self) -> str:
        """Return a digest of the names and sample counts of the shards: what the order depends on."""
        hasher = hashlib.blake2b("\0".join(self.names).encode("utf-8", "surrogateescape"), digest_size=12)
        hasher.update(self.counts.tobytes())
        return hasher.hexdigest()


def index_source(source: SourceConfig, data: DataConfig, progress: bool = False) -> IndexedSource:
    """Find the shards of `source` and list those that no fresh index has.

    Raises InputError for a missing shard, a file that is no tar, or a source without a usable sample of its kind.
    """
    where = f"data source {source.name}"
    locations = find_shards(source.shards, where)
    files, file_of, row_of = index_shards(locations, Cache.of(data), where, progress=progress)
    counts = np.array([files[f].table["samples"][r] for f, r in zip(file_of, row_of, strict=True)], dtype=np.int64)
    indexed = IndexedSource(
        source.name, source.kind, source.weight, locations, short_names(locations), counts, files, file_of, row_of
    )
    for column, kinds in (("images", ("paired", "image")), ("texts", ("paired", "text"))):
        if source.kind in kinds and not indexed.total(column):
            found = f"{indexed.total('samples')} samples, {indexed.total('images')} with an image and "
            found += f"{indexed.total('texts')} with a text"
            raise InputError(
                f"{where}: kind {source.kind} needs {column}, found {found} in {len(locations)} shards, "
                f"the first {locations[0]}; correct `kind` or `shards`"
            )
    return indexed


def index_shards(
    locations: list[str], cache: Cache, where: str, processes: int | None = None, progress: bool = False
) -> tuple[list[IndexFile], np.ndarray, np.ndarray]:
    """Return the index files of the shards, and for each shard its file and its row there, (shards,) int32 each.

    What no index has, or has not as it is now, is listed with `processes` (None: one a core) and saved.
    Raises InputError for a missing shard or a file that is no tar.
    """
    files: list[IndexFile] = []
    file_of, row_of = np.empty(len(locations), np.int32), np.empty(len(locations), np.int32)
    for folder, members in _by_folder(locations).items():
        here = [locations[i] for i in members]
        file = _index_folder(folder, here, cache, where, processes, progress)
        rows = {name: row for row, name in enumerate(file.names)}
        file_of[members] = len(files)
        row_of[members] = [rows[_name(location)] for location in here]
        files.append(file)
    return files, file_of, row_of


def saved_index(locations: list[str], cache: Cache, where: str) -> list[tuple[IndexFile, int, bool] | None]:
    """Return for each shard the saved index that knows it, its row there, and whether it is as it was listed.

    None: no saved index knows the shard. Nothing is listed or written. A remote shard counts as unchanged.
    Raises InputError for a missing shard.
    """
    found: list[tuple[IndexFile, int, bool] | None] = [None] * len(locations)
    for folder, members in _by_folder(locations).items():
        here = [locations[i] for i in members]
        file, stale = _freshest(folder, here, _states(here, where), cache)
        rows = {name: row for row, name in enumerate(file.names)} if file else {}
        changed = set(stale)
        for i in members:
            row = rows.get(_name(locations[i]))
            if file is not None and row is not None:
                found[i] = file, row, locations[i] not in changed
    return found


def _by_folder(locations: list[str]) -> dict[str, list[int]]:
    folders: dict[str, list[int]] = {}
    for i, location in enumerate(locations):
        folders.setdefault(_folder(location), []).append(i)
    return folders


def _index_folder(
    folder: str, locations: list[str], cache: Cache, where: str, processes: int | None, progress: bool
) -> IndexFile:
    states = _states(locations, where)
    file, stale = _freshest(folder, locations, states, cache)
    if file is None or stale:
        with cache.lock("index " + folder):
            file, stale = _freshest(folder, locations, states, cache)  # another rank may have written it meanwhile
            if file is None or stale:
                listed = _list_all(stale, cache, where, processes, progress)
                file = _save(folder, cache, file, listed, dict(zip(locations, states, strict=True)))
    return file


def _states(locations: list[str], where: str) -> list[tuple[int, int]]:
    """(bytes, time of change in ns) of each local shard; (0, 0) of a remote one, which is checked when it is read."""

    def state(location: str) -> tuple[int, int]:
        if is_remote(location):
            return 0, 0
        found = os.stat(location)
        return found.st_size, found.st_mtime_ns

    try:
        with ThreadPoolExecutor(16) as threads:  # a network file system answers many at once
            return list(threads.map(state, locations, chunksize=64))
    except OSError as error:
        raise InputError(f"{where}: {error.filename}: {error.strerror}; check the path of this shard") from None


def _stale(file: IndexFile, locations: list[str], states: list[tuple[int, int]]) -> list[str]:
    known = {name: (int(row["bytes"]), int(row["mtime_ns"])) for name, row in zip(file.names, file.table, strict=True)}
    return [
        location
        for location, state in zip(locations, states, strict=True)
        if (known.get(_name(location)) is None if is_remote(location) else known.get(_name(location)) != state)
    ]


def _list_all(
    locations: list[str], cache: Cache, where: str, processes: int | None, progress: bool
) -> Iterator[tuple[str, int, Listing]]:
    """Yield (location, bytes, listing) of each shard, as they come."""
    columns = (TextColumn("listing shards"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    workers = min(processes or os.cpu_count() or 1, len(locations))
    with Progress(
        *columns, console=Console(file=sys.stderr), disable=not progress or len(locations) < _WORTH_A_BAR
    ) as bar:
        task = bar.add_task("", total=len(locations))
        for location, outcome in _each_listing(locations, cache, workers):
            bar.advance(task)
            if isinstance(outcome, str):
                raise InputError(f"{where}: {location}: {outcome}")
            yield location, *outcome


def _each_listing(locations: list[str], cache: Cache, workers: int) -> Iterator[tuple[str, tuple[int, Listing] | str]]:
    if workers <= 1 or len(locations) < 8:
        yield from ((location, _list_one(location, cache)) for location in locations)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        chunk = max(1, min(16, len(locations) // (4 * workers)))
        results = pool.map(_list_one, locations, [cache] * len(locations), chunksize=chunk)
        yield from zip(locations, results, strict=True)


def _list_one(location: str, cache: Cache) -> tuple[int, Listing] | str:
    """The bytes and the listing of a shard, or why there is none."""
    try:
        path = fetch(location, cache) if is_remote(location) else Path(location)
        return path.stat().st_size, list_samples(path)
    except NotATar as error:
        return f"expected a tar shard, but {error}"
    except ShardError as error:
        return f"cannot fetch the shard: {error}"
    except OSError as error:
        return f"cannot read the shard: {error.strerror}"


def _save(
    folder: str,
    cache: Cache,
    old: IndexFile | None,
    listed: Iterator[tuple[str, int, Listing]],
    states: dict[str, tuple[int, int]],
) -> IndexFile:
    """Write the index of `folder`: what `old` has and is still there, and what is newly listed."""
    path = _write_path(folder, cache)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as out:
            writer = _Writer(out)
            fresh = set()
            for location, size, listing in listed:
                fresh.add(_name(location))
                writer.add(_name(location), size, states[location][1], listing)
            for shard, name in enumerate(old.names if old else ()):
                if name not in fresh and (is_remote(folder) or os.path.exists(os.path.join(folder, name))):
                    row = old.table[shard]  # type: ignore[union-attr]
                    writer.add(name, int(row["bytes"]), int(row["mtime_ns"]), old.listing(shard))  # type: ignore[union-attr]
            writer.finish()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return IndexFile(path)


class _Writer:
    def __init__(self, out: BinaryIO):
        self.out = out
        self.rows: list[tuple[int, ...]] = []
        self.names: list[str] = []
        self.damages: list[str] = []
        out.write(_MAGIC)

    def add(self, name: str, size: int, mtime_ns: int, listing: Listing) -> None:
        samples = listing.samples
        images, texts = (int((samples[f"{m}_block"] > 0).sum()) for m in ("image", "text"))
        self.rows.append((size, mtime_ns, self.out.tell(), len(samples), images, texts, len(listing.keys)))
        self.names.append(name)
        self.damages.append(listing.damage)
        self.out.write(samples.tobytes())
        self.out.write(listing.keys)

    def finish(self) -> None:
        table_start = self.out.tell()
        self.out.write(np.array(self.rows, dtype=_SHARD).tobytes())
        names = _join(self.names)
        self.out.write(names)
        self.out.write(_join(self.damages))
        self.out.write(_TAIL.pack(table_start, len(self.rows), len(names), _MAGIC))


def _freshest(
    folder: str, locations: list[str], states: list[tuple[int, int]], cache: Cache
) -> tuple[IndexFile | None, list[str]]:
    """Return the index that knows most of the shards as they are now, and the shards that it does not know."""
    best: IndexFile | None = None
    fewest = locations
    for path in (_beside(folder, cache), _in_cache(folder, cache)):
        try:
            file = IndexFile(path) if path else None
        except (OSError, ValueError):  # absent, or of another version: it is written anew
            continue
        if file and (best is None or len(_stale(file, locations, states)) < len(fewest)):
            best, fewest = file, _stale(file, locations, states)
    return best, fewest


def _beside(folder: str, cache: Cache) -> Path | None:
    if not is_remote(folder):
        return Path(folder) / INDEX_NAME
    if folder.startswith("pipe:"):
        return None
    try:
        return fetch(f"{folder}/{INDEX_NAME}", cache)
    except ShardError:
        return None


def _in_cache(folder: str, cache: Cache) -> Path:
    return cache.folder / "index" / (hashlib.blake2b(folder.encode(), digest_size=8).hexdigest() + ".index")


def _write_path(folder: str, cache: Cache) -> Path:
    if not is_remote(folder) and os.access(folder, os.W_OK):
        return Path(folder) / INDEX_NAME
    path = _in_cache(folder, cache)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def _folder(location: str) -> str:
    if location.startswith("pipe:"):
        return "pipe:"
    return location.rpartition("/")[0] if is_remote(location) else os.path.abspath(os.path.dirname(location))


def _name(location: str) -> str:
    return location if location.startswith("pipe:") else location.rpartition("/")[2]


def _join(texts: list[str]) -> bytes:
    return "\0".join(texts).encode("utf-8", "surrogateescape")


def _split(joined: bytes, count: int) -> list[str]:
    return joined.decode("utf-8", "surrogateescape").split("\0") if count else []
