"""One safetensors file: written as a stream, hashed on the way, and read as a memory map. No torch."""

import contextlib
import json
import math
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

_CHUNK = 4 * 2**20  # bytes hashed and written at a time: they stay in the processor's cache in between
ITEM_BYTES = {"F32": 4, "BF16": 2}

Entry = tuple[str, tuple[int, ...]]  # name, shape


class FileRecord(NamedTuple):
    """What the manifest knows of a file."""

    bytes: int
    xxh3: str  # 128 bits, hexadecimal


class TensorFile:
    """A safetensors file being written: its tensors are announced first, then given one after the other."""

    def __init__(
        self, path: Path, entries: Sequence[Entry], dtype: str = "F32", metadata: dict[str, str] | None = None
    ):
        self._hash = xxhash.xxh3_128()
        self._sizes = [math.prod(shape) * ITEM_BYTES[dtype] for _, shape in entries]
        self._given = self._bytes = 0
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        begin = 0
        for (name, shape), size in zip(entries, self._sizes, strict=True):
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + size]}
            begin += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that the tensors are aligned
        self._file = open(path, "wb")  # noqa: SIM115  (finish and abandon close it)
        self._put(len(text).to_bytes(8, "little") + text)

    def write(self, data: np.ndarray) -> None:
        """Append the next announced tensor; its bytes are taken in C order."""
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if flat.nbytes != self._sizes[self._given]:
            raise ValueError(f"tensor {self._given}: {flat.nbytes} bytes, {self._sizes[self._given]} were announced")
        self._given += 1
        for start in range(0, flat.nbytes, _CHUNK):
            self._put(flat[start : start + _CHUNK].data)

    def finish(self) -> FileRecord:
        """Flush everything to the disk and return what the manifest has to know."""
        if self._given != len(self._sizes):
            raise ValueError(f"{self._given} tensors written, {len(self._sizes)} were announced")
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        return FileRecord(self._bytes, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close the file as it is."""
        with contextlib.suppress(OSError):  # a full disk complains once more about what is still buffered
            self._file.close()

    def _put(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._file.write(data)
        self._bytes += len(data)


class MappedFile:
    """A safetensors file of float32 tensors, read by touching the pages that are asked for."""

    def __init__(self, path: Path):
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(self._map[:8], "little")
        header = json.loads(self._map[8:start])
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self._data = np.frombuffer(self._map, np.uint8, offset=start)
        self._entries = header

    @property
    def names(self) -> Sequence[str]:
        """Names of the tensors, in file order."""
        return list(self._entries)

    def array(self, name: str) -> np.ndarray:
        """Return the tensor `name` as a read-only float32 view of the file (bfloat16: a widened copy)."""
        entry = self._entries[name]
        raw = self._data[slice(*entry["data_offsets"])]
        if entry["dtype"] == "BF16":
            raw = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.uint8)
        elif entry["dtype"] != "F32":
            raise ValueError(f"{name}: found {entry['dtype']}, expected F32 or BF16")
        return raw.view(np.float32).reshape(entry["shape"])


def hash_file(path: Path) -> FileRecord:
    """Return size and hash of the file as it is on the disk."""
    digest, size = xxhash.xxh3_128(), 0
    with open(path, "rb") as file:
        while data := file.read(_CHUNK):
            digest.update(data)
            size += len(data)
    return FileRecord(size, digest.hexdigest())
