"""The index file of a folder of shards: which samples each holds, and where their members lie; memory-mapped.

A training start reads one table with a row per shard; rows of samples are touched when a sample is read.
The file: MAGIC; per shard its sample rows and joined keys; the shard table; names and damages; TAIL.
"""

import mmap
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from m3ae_scale.data.tar import BLOCK, SAMPLE, Listing

_MAGIC = b"m3ae-index-v001\n"
_TAIL = struct.Struct("<QQQ16s")  # where the shard table begins, shards, bytes of the names, magic
SHARD = np.dtype(
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
            self.table = np.frombuffer(file.read(shards * SHARD.itemsize), dtype=SHARD)
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


class IndexWriter:
    """Writes an index file, one shard after the other."""

    def __init__(self, out: BinaryIO):
        self.out = out
        self.rows: list[tuple[int, ...]] = []
        self.names: list[str] = []
        self.damages: list[str] = []
        out.write(_MAGIC)

    def add(self, name: str, size: int, mtime_ns: int, listing: Listing) -> None:
        """Write the samples of one shard."""
        samples = listing.samples
        images, texts = (int((samples[f"{m}_block"] > 0).sum()) for m in ("image", "text"))
        self.rows.append((size, mtime_ns, self.out.tell(), len(samples), images, texts, len(listing.keys)))
        self.names.append(name)
        self.damages.append(listing.damage)
        self.out.write(samples.tobytes())
        self.out.write(listing.keys)

    def finish(self) -> None:
        """Write the tables."""
        table_start = self.out.tell()
        self.out.write(np.array(self.rows, dtype=SHARD).tobytes())
        names = _join(self.names)
        self.out.write(names)
        self.out.write(_join(self.damages))
        self.out.write(_TAIL.pack(table_start, len(self.rows), len(names), _MAGIC))


def _join(texts: list[str]) -> bytes:
    return "\0".join(texts).encode("utf-8", "surrogateescape")


def _split(joined: bytes, count: int) -> list[str]:
    return joined.decode("utf-8", "surrogateescape").split("\0") if count else []
