"""Rows of an HDF5 file in the layout of m3ae_public: encoded images and texts as arrays of bytes, labels as integers.

jpg, caption              image-text pairs        (m3ae/data.py, ImageTextDataset)
text                      texts without an image  (TextDataset)
train_jpg, train_labels   images with labels, and the same with val_ (ImageNetDataset)
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from m3ae_scale.data.convert.rows import Row
from m3ae_scale.data.sample import Kind
from m3ae_scale.errors import InputError

_READ = 1000  # texts read at a time


class Hdf5Rows:
    """The rows of one HDF5 file, or of one of its splits."""

    def __init__(self, path: Path, kind: Kind | None, split: str | None):
        """Open the file; its datasets tell the kind unless it is given.

        split: "train" reads train_jpg and train_labels; None: there is only one.
        Raises InputError for a file that is no HDF5, or lacks a dataset.
        """
        self._file = _open(path)
        prefix = _prefix(path, list(self._file), split)
        self._images = self._file.get(f"{prefix}jpg") if kind != "text" else None
        self._labels = self._file.get(f"{prefix}labels") if self._images is not None else None
        names = ("caption", "text") if kind == "text" or self._images is not None else ("text", "caption")
        found = [f"{prefix}{name}" for name in names if f"{prefix}{name}" in self._file]
        self._texts = self._file[found[0]] if found and kind != "image" else None
        self.kind: Kind = "text" if self._images is None else "image" if self._texts is None else "paired"
        if kind not in (None, self.kind):
            raise InputError(
                f"{path}: found the datasets {', '.join(self._file)}: enough for kind {self.kind}, not for {kind}"
            )
        parts = [part for part in (self._images, self._texts, self._labels) if part is not None]
        if len({len(part) for part in parts}) > 1:
            lengths = ", ".join(f"{len(part)} in {part.name[1:]}" for part in parts)
            raise InputError(f"{path}: found {lengths}; expected as many in each")
        self._length = len(parts[0])
        self.identity = {"hdf5": path.name, "bytes": path.stat().st_size, "split": prefix.rstrip("_") or None}

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Row]:
        for first in range(0, self._length, _READ):
            span = slice(first, first + _READ)
            texts = None if self._texts is None else self._texts[span]
            labels = None if self._labels is None else self._labels[span]
            for i in range(min(_READ, self._length - first)):
                number = first + i
                yield Row(
                    number,
                    image=None if self._images is None else partial(_image, self._images, number),
                    image_name="" if self._images is None else f"{self._images.name[1:]}[{number}]",
                    text=None if texts is None else _bytes(texts[i]),
                    label=None if labels is None else int(labels[i]),
                )


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise InputError(f"{path}: HDF5 needs another package: pip install 'm3ae_scale[convert]'") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: cannot read it as HDF5 ({error})") from None


def _prefix(path: Path, datasets: list[str], split: str | None) -> str:
    """What stands before the names of the datasets to read: "" or such as "train_"."""
    splits = sorted(name.removesuffix("_jpg") for name in datasets if name.endswith("_jpg"))
    whole = "jpg" in datasets or "text" in datasets
    if split is not None:
        if split not in splits:
            raise InputError(f"{path}: found the splits {', '.join(splits) or 'none'}, expected --split {split}")
        return f"{split}_"
    if not whole and len(splits) > 1:
        raise InputError(f"{path}: found the splits {', '.join(splits)}; choose one with --split")
    if not whole and not splits:
        raise InputError(
            f"{path}: found the datasets {', '.join(datasets) or 'none'}; expected jpg and caption, text, or train_jpg "
            "and train_labels, as m3ae_public writes them"
        )
    return "" if whole else f"{splits[0]}_"


def _image(images: Any, number: int) -> bytes:
    return _bytes(images[number])


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return bytes(value) if isinstance(value, bytes) else np.asarray(value, dtype=np.uint8).tobytes()
