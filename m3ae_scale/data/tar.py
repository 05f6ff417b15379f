"""Lists the samples of one tar shard: where each member lies, and what is damaged."""

import os
import tarfile
from dataclasses import dataclass

import numpy as np

BLOCK = 512  # bytes; a tar is made of blocks of this size
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "jp2", "avif")
TEXT_ENDINGS = ("txt", "text", "caption")
META_ENDINGS = ("json",)

# One sample: where its members begin (in blocks; 0: it has no such member) and their bytes, and where its key ends in
# the joined keys of the shard.
SAMPLE = np.dtype(
    [(f"{member}_{part}", "<u4") for member in ("image", "text", "meta") for part in ("block", "bytes")]
    + [("key_end", "<u4")]
)

_MEMBER_OF = {
    **dict.fromkeys(IMAGE_ENDINGS, "image"),
    **dict.fromkeys(TEXT_ENDINGS, "text"),
    **dict.fromkeys(META_ENDINGS, "meta"),
}


class NotATar(Exception):
    """A file that holds no tar at all; its text says what it looks like."""


@dataclass(frozen=True)
class Listing:
    """The samples of a shard, in the order of their first members."""

    samples: np.ndarray  # (samples,) of dtype SAMPLE
    keys: bytes  # all keys, end to end
    damage: str  # what is wrong with the rest of the shard; "" if nothing


def list_samples(path: str | os.PathLike[str]) -> Listing:
    """List the shard at `path`. Members before a damage are listed, and `damage` says what follows.

    A sample is the members that share the path up to the first dot of the file name (WebDataset's rule), adjacent or
    not. A name that occurs again begins a sample of its own, with "#2", "#3", ... behind its key. Folders, links and
    members with an unknown ending are passed over.
    Raises NotATar when not even the first header can be read, and OSError.
    """
    found: dict[str, _Found] = {}
    with _open(path) as tar:
        size = os.stat(path).st_size
        damage = ""
        while not damage:
            try:
                member = tar.next()
            except tarfile.TarError as error:
                damage = f"damaged after {len(found)} samples, at byte {tar.offset} ({error})"
                break
            if member is None:
                damage = _damage_at_end(tar, size, len(found))
                break
            tar.members.clear()  # type: ignore[attr-defined]  # or it keeps them all
            if member.offset_data + member.size > size:
                damage = f"truncated after {len(found)} samples: {member.name} needs {member.size} bytes"
            elif member.isreg():
                _add(member, found)
    rows = np.zeros(len(found), dtype=SAMPLE)
    keys = bytearray()
    for row, (key, sample) in zip(rows, found.items(), strict=True):
        keys += key.encode("utf-8", "surrogateescape")
        row["key_end"] = len(keys)
        for name, value in sample.columns.items():
            row[name] = value
    return Listing(rows, bytes(keys), damage)


@dataclass(frozen=True)
class _Found:
    endings: set[str]
    columns: dict[str, int]


def _add(member: tarfile.TarInfo, found: dict[str, _Found]) -> None:
    folder, slash, file = member.name.rpartition("/")
    stem, dot, ending = file.partition(".")
    kind = _MEMBER_OF.get(ending.lower())
    if not dot or not stem or kind is None:
        return
    first = key = (folder + slash + stem).removeprefix("./")
    number = 1
    while key in found and ending in found[key].endings:
        number += 1
        key = f"{first}#{number}"
    sample = found.setdefault(key, _Found(set(), {}))
    sample.endings.add(ending)
    if f"{kind}_block" not in sample.columns:  # of a jpg and a png with one name, the first
        sample.columns.update({f"{kind}_block": member.offset_data // BLOCK, f"{kind}_bytes": member.size})


def _open(path: str | os.PathLike[str]) -> tarfile.TarFile:
    try:
        return tarfile.open(path, "r:")
    except tarfile.TarError:
        with open(path, "rb") as file:
            head = file.read(6)
        known = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"(\xb5/\xfd": "zstandard"}
        packed = next((name for magic, name in known.items() if head.startswith(magic)), None)
        if packed:
            raise NotATar(f"it is {packed}; shards are read at offsets, so unpack it to a plain .tar") from None
        raise NotATar("it is empty" if not head else "it is no tar") from None


def _damage_at_end(tar: tarfile.TarFile, size: int, samples: int) -> str:
    """What tarfile takes for the end without a word: a header that is none, or no end mark."""
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    block = file.read(BLOCK)
    if not block and size:
        return f"truncated after {samples} samples: it has no end mark"
    if block.strip(b"\0"):
        return f"damaged after {samples} samples, at byte {tar.offset}: no header where one belongs"
    return ""
