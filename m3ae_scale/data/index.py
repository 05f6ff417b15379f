"""Finds the shards of a source and keeps their index fresh: one index file a folder.

The index lies beside the shards (`m3ae-scale.index`), or in the cache when that folder cannot be written or is behind
a URL; an index that lies beside remote shards is used. A shard whose size or time of change differs is listed again.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from m3ae_scale.config.schema import DataConfig, SourceConfig
from m3ae_scale.data.index_file import Entry, IndexFile, IndexWriter
from m3ae_scale.data.remote import Cache, ShardError, fetch, is_remote
from m3ae_scale.data.sample import Kind
from m3ae_scale.data.shards import find_shards, short_names
from m3ae_scale.data.tar import Listing, NotATar, list_samples
from m3ae_scale.errors import InputError

INDEX_NAME = "m3ae-scale.index"
_WORTH_A_BAR = 50  # shards to list


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
        places = zip(self.names, self.file_of.tolist(), self.row_of.tolist(), strict=True)
        found = ((name, self.files[file].damages[row]) for name, file, row in places)
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
    counts = np.empty(len(locations), dtype=np.int64)
    for i, file in enumerate(files):
        counts[file_of == i] = file.table["samples"][row_of[file_of == i]]
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
        with cache.lock("index", folder):
            file, stale = _freshest(folder, locations, states, cache)  # another rank may have written it meanwhile
            if file is None or stale:
                listed = _list_all(stale, cache, where, processes, progress)
                file = _save(folder, cache, file, listed, dict(zip(locations, states, strict=True)))
    return file


def _states(locations: list[str], where: str) -> list[tuple[int, int]]:
    """(bytes, time of change in ns) of each local shard; (0, 0) of a remote one, which is checked when it is read."""

    def states(some: list[str]) -> list[tuple[int, int]]:
        found = (os.stat(location) for location in some)
        return [(state.st_size, state.st_mtime_ns) for state in found]

    if is_remote(locations[0]):
        return [(0, 0)] * len(locations)
    parts = [locations[i : i + 1000] for i in range(0, len(locations), 1000)]
    try:
        with ThreadPoolExecutor(16) as threads:  # a network file system answers many at once
            return [state for part in threads.map(states, parts) for state in part]
    except OSError as error:
        raise InputError(f"{where}: {error.filename}: {error.strerror}; check the path of this shard") from None


def _stale(file: IndexFile, locations: list[str], states: list[tuple[int, int]]) -> list[str]:
    """The shards that `file` does not have, or has as they were before."""
    listed = zip(file.table["bytes"].tolist(), file.table["mtime_ns"].tolist(), strict=True)
    known = dict(zip(file.names, listed, strict=True))
    if is_remote(locations[0]):
        return [location for location in locations if _name(location) not in known]
    return [location for location, state in zip(locations, states, strict=True) if known.get(_name(location)) != state]


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
            writer = IndexWriter(out)
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
        stale = _stale(file, locations, states) if file else locations
        if best is None or len(stale) < len(fewest):
            best, fewest = file, stale
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
    parent = location.rpartition("/")[0]
    return parent if is_remote(location) else _absolute(parent)


@lru_cache
def _absolute(folder: str) -> str:
    return os.path.abspath(folder)


def _name(location: str) -> str:
    return location if location.startswith("pipe:") else location.rpartition("/")[2]
