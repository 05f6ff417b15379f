"""Rows of a folder with one folder a class, as ImageNet is unpacked and torchvision's ImageFolder reads it."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from m3ae_scale.data.convert.rows import Row
from m3ae_scale.data.sample import Kind
from m3ae_scale.data.tar import IMAGE_ENDINGS
from m3ae_scale.errors import InputError


class ImageFolderRows:
    """The images of all classes, shuffled once and always alike: a shard holds many classes.

    A class is numbered by its place among the sorted names of the folders.
    """

    kind: Kind = "image"

    def __init__(self, root: Path):
        """List the images. Raises InputError where there are none, or folders instead of images."""
        self.root = root
        self.classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != ".")
        found = [(name, label) for label, folder in enumerate(self.classes) for name in self._images(folder)]
        if not found:
            raise InputError(
                f"{root}: found neither a table (csv, tsv, jsonl, parquet) nor folders of images, one a class"
            )
        shuffled = np.random.default_rng(0).permutation(len(found))
        self._files = [found[i] for i in shuffled]
        names = "\0".join(name for name, _ in found).encode("utf-8", "surrogateescape")
        self.identity = {
            "classes": self.classes,
            "images": len(found),
            "names": hashlib.blake2b(names, digest_size=8).hexdigest(),
        }

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Row]:
        for number, (name, label) in enumerate(self._files):
            path = self.root / name
            meta = {"class": self.classes[label], "file": name}
            yield Row(number, path.read_bytes, str(path), label=label, meta=meta)

    def _images(self, folder: str) -> list[str]:
        """The images of a class, relative to the root and sorted; nested ones too."""
        found = [
            os.path.relpath(os.path.join(inside, file), self.root)
            for inside, _, files in os.walk(self.root / folder)
            for file in files
            if file.rpartition(".")[2].lower() in IMAGE_ENDINGS
        ]
        if found and all(os.path.dirname(name) != folder for name in found):
            raise InputError(
                f"{self.root / folder}: found folders, expected the images of one class; to convert that split, give "
                f"{self.root / folder} itself"
            )
        return sorted(found)
