"""Labelled sets, listed and not yet decoded: a folder with one folder of images a class, or tar shards with labels.

    FOLDER/<class>/<image>      as ImageNet is unpacked and torchvision's ImageFolder reads it; nested images too
    FOLDER/*.tar                a label stands in the cls member of a sample, or under a key of its json member

Listing reads names, and labels where they are members of a shard; samples are read one by one, in any thread.
"""

import hashlib
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from m3ae_scale.config.schema import DataConfig, SourceConfig
from m3ae_scale.data.index import IndexedSource, index_source
from m3ae_scale.data.remote import Cache
from m3ae_scale.data.sample import Kind, RawSample
from m3ae_scale.data.shards import ShardFiles
from m3ae_scale.data.tar import IMAGE_ENDINGS
from m3ae_scale.errors import InputError

Input = Literal["image", "text", "both"]
KINDS: dict[str, Kind] = {"image": "image", "text": "text", "both": "paired"}
CLS = "cls"  # the member that holds a label
_UNNAMED = "label"  # the key of the json member that is looked at where no cls member and no key is given
_SOURCE = "encode"  # the source that the recipe of a loaded encoder knows


@dataclass(frozen=True)
class LabelledSet:
    """n samples, each with the number of its class."""

    place: str  # as it was given
    classes: tuple[str, ...]
    labels: NDArray[np.int64]  # (n,)
    identity: str  # a digest of which samples these are, and of what is taken of them; labels have no part in it
    read: Callable[[int], RawSample]  # the undecoded sample i; may be called from several threads

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def name(self) -> str:
        """A short name for titles and file names, long enough to tell scenes/train/image from photos/train/image."""
        parts = [part for part in Path(self.place).parts if part.strip("./*") and "{" not in part]
        return "-".join(parts[-3:]).replace("*", "").removesuffix(".tar") or "data"

    def of_classes(self, classes: Sequence[str]) -> "LabelledSet":
        """Return the same samples with classes numbered as in `classes`, a training set's.

        Raises InputError for a class that is not among them.
        """
        number = {name: i for i, name in enumerate(classes)}
        strange = next((name for name in self.classes if name not in number), None)
        if strange is not None:
            raise InputError(
                f"{self.place}: found the class {strange!r}, expected one of the {len(classes)} classes trained on "
                f"({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
            )
        renumbered = np.array([number[name] for name in self.classes], np.int64)[self.labels]
        return replace(self, classes=tuple(classes), labels=renumbered)

    def some(self, most: int) -> "LabelledSet":
        """Return at most `most` samples, drawn once and always alike."""
        if len(self) <= most:
            return self
        picked = np.sort(np.random.default_rng(0).permutation(len(self))[:most])
        read = self.read
        return replace(
            self,
            labels=self.labels[picked],
            identity=f"{self.identity}-{most}",
            read=lambda i: read(int(picked[i])),
        )


def open_labelled(place: str, taken: Input, data: DataConfig, label: str | None = None) -> LabelledSet:
    """List the labelled set at `place`.

    place: a folder of class folders; or shards: a folder, glob, brace pattern or URL.
    taken: what the probe is given of each sample.
    data: how shards are read (cache, retries): the data section of the run that is evaluated.
    label: "cls" or a key of the json member; None: cls where there is one, else the key "label".
    Raises InputError where there is no sample, no label, or not what is to be taken.
    """
    if _is_folder(place, taken):
        if label is not None:
            raise InputError(f"{place}: found a folder of class folders, whose names are the labels; leave --label out")
        names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and entry.name[0] != ".")
        paths = [(path, number) for number, name in enumerate(names) for path in _images(os.path.join(place, name))]
        if not paths:
            raise InputError(f"{place}: found neither shards (*.tar) nor folders of images, one a class")
        return _of_paths(place, tuple(names), paths)
    indexed, cache = _index(place, taken, data)
    classes, labels = _labels(indexed, cache, label)
    return _of_shards(place, classes, labels, indexed, cache)


def open_unlabelled(place: str, taken: Input, data: DataConfig) -> LabelledSet:
    """List the samples at `place` as one class, with labels or without: shards, or all images in a folder.

    place, taken, data: as for open_labelled. Raises InputError where there is no sample, or not what is to be taken.
    """
    if _is_folder(place, taken):
        paths = [(path, 0) for path in _images(place)]
        if not paths:
            raise InputError(f"{place}: found neither shards (*.tar) nor images in this folder or below")
        return _of_paths(place, ("any",), paths)
    indexed, cache = _index(place, taken, data)
    return _of_shards(place, ("any",), np.zeros(int(indexed.counts.sum()), np.int64), indexed, cache)


def _is_folder(place: str, taken: Input) -> bool:
    """Tell a folder of images from shards. Raises InputError for one whose texts are wanted."""
    if not os.path.isdir(place) or _holds_shards(place):
        return False
    if taken != "image":
        raise InputError(f"{place}: found a folder of images, which has no texts; --input {taken} needs shards")
    return True


def _index(place: str, taken: Input, data: DataConfig) -> tuple[IndexedSource, Cache]:
    try:
        return index_source(SourceConfig(name=_SOURCE, shards=place, kind=KINDS[taken]), data), Cache.of(data)
    except InputError as error:
        raise InputError(str(error).replace(f"data source {_SOURCE}", place, 1)) from None


def _holds_shards(folder: str) -> bool:
    return any(name.endswith(".tar") for _, _, names in os.walk(folder) for name in names)


def _of_paths(root: str, classes: tuple[str, ...], found: list[tuple[str, int]]) -> LabelledSet:
    hasher = hashlib.blake2b(digest_size=12)
    for path, _ in found:
        hasher.update(f"{os.path.relpath(path, root)}\0{os.path.getsize(path)}\0".encode("utf-8", "surrogateescape"))

    def read(i: int) -> RawSample:
        path = found[i][0]
        try:
            return RawSample(_SOURCE, "", path, "image", Path(path).read_bytes(), None, None)
        except OSError as error:
            raise InputError(f"{path}: cannot read the image ({error.strerror})") from None

    labels = np.array([number for _, number in found], np.int64)
    return LabelledSet(root, classes, labels, hasher.hexdigest(), read)


def _images(folder: str) -> list[str]:
    return sorted(
        os.path.join(inside, name)
        for inside, _, names in os.walk(folder)
        for name in names
        if name.rpartition(".")[2].lower() in IMAGE_ENDINGS
    )


def _labels(indexed: IndexedSource, cache: Cache, label: str | None) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Read the classes, and the number of each sample's."""
    files = ShardFiles(cache)
    try:
        told = [_labels_of_shard(indexed, shard, files, label) for shard in range(len(indexed.counts))]
    finally:
        files.close()
    for shard, texts in enumerate(told):
        if None in texts:
            key = indexed.entry(shard, texts.index(None)).key
            raise InputError(
                f"{indexed.locations[shard]}: sample {key} has no label; expected "
                + (f"the key {label!r} in its json member" if label not in (None, CLS) else f"a {CLS} member")
                + (f', or the key "{_UNNAMED}" in its json member; name the key with --label' if label is None else "")
            )
    named = [cast(str, text) for texts in told for text in texts]
    classes = _in_order(set(named))
    number_of = {name: i for i, name in enumerate(classes)}
    return tuple(classes), np.array([number_of[name] for name in named], np.int64)


def _of_shards(
    place: str, classes: tuple[str, ...], labels: NDArray[np.int64], indexed: IndexedSource, cache: Cache
) -> LabelledSet:
    digest = hashlib.blake2b(f"{indexed.digest()}/{indexed.kind}".encode(), digest_size=12)
    for shard in range(len(indexed.counts)):
        digest.update(indexed.rows(shard).tobytes())  # where each member lies, and its bytes: names and sizes may agree
    where = [(shard, i) for shard, count in enumerate(indexed.counts.tolist()) for i in range(count)]
    read = partial(_read_member, indexed, where, cache, threading.local())
    return LabelledSet(place, classes, labels, digest.hexdigest(), read)


def _in_order(names: set[str]) -> list[str]:
    """Sort numbers by value, names by alphabet."""
    return sorted(names, key=lambda name: (0, int(name), "") if name.isdecimal() else (1, 0, name))


def _labels_of_shard(indexed: IndexedSource, shard: int, files: ShardFiles, label: str | None) -> list[str | None]:
    """The label of each sample of a shard, as text; None where it has none."""
    location, size = indexed.locations[shard], indexed.bytes_of(shard)
    entries = [indexed.entry(shard, i) for i in range(int(indexed.counts[shard]))]
    members = _cls_members(files.path(location)) if label in (None, CLS) else {}
    if members or label == CLS:
        return [members.get(entry.key) for entry in entries]
    found: list[str | None] = []
    for entry in entries:
        meta = files.read(location, *entry.meta, shard_bytes=size) if entry.meta else b"{}"
        try:
            value = json.loads(meta).get(label or _UNNAMED)
        except (ValueError, AttributeError):
            raise InputError(f"{location}: the json member of sample {entry.key} is no JSON object") from None
        found.append(None if value is None else str(value))
    return found


def _cls_members(shard: Path) -> dict[str, str]:
    """Key -> label, of every cls member; keys as WebDataset cuts them: up to the first dot of the file name."""
    found = {}
    with tarfile.open(shard, "r:") as tar:
        for member in tar:
            folder, slash, file = member.name.rpartition("/")
            stem, _, ending = file.partition(".")
            if ending.lower() == CLS and (content := tar.extractfile(member)) is not None:
                found[(folder + slash + stem).removeprefix("./")] = content.read().decode("utf-8", "replace").strip()
    return found


def _read_member(
    indexed: IndexedSource, where: list[tuple[int, int]], cache: Cache, of_thread: threading.local, i: int
) -> RawSample:
    if not hasattr(of_thread, "files"):
        of_thread.files = ShardFiles(cache)  # its table of open files is not for several threads
    shard, number = where[i]
    location, entry = indexed.locations[shard], indexed.entry(shard, number)
    wanted = (entry.image if indexed.kind != "text" else None, entry.text if indexed.kind != "image" else None)
    image, text = (
        of_thread.files.read(location, *span, shard_bytes=indexed.bytes_of(shard)) if span else None for span in wanted
    )
    return RawSample(_SOURCE, indexed.names[shard], entry.key, indexed.kind, image, text, None)


def batches(total: int, size: int) -> Iterator[range]:
    """Cut 0 to `total` into runs of `size`."""
    return (range(first, min(first + size, total)) for first in range(0, total, size))
