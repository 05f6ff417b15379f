"""Makes real tar shards of real JPEGs, and experiments that read them, for the tests of this folder."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m3ae_scale.config import Experiment

COLOURS = ("red", "green", "blue", "grey", "white", "black")
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "square",
    "of",
    "shade",
    *COLOURS,
    *map(str, range(10)),
]
VOCABULARY += [f"##{digit}" for digit in range(10)]


def jpeg(number: int, size: tuple[int, int] = (40, 32)) -> bytes:
    """A small JPEG that differs with `number`."""
    noise = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize(size).save(out, "JPEG")
    return out.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write the members into a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample_members(key: str, number: int, kind: str = "paired") -> list[tuple[str, bytes]]:
    """The members of one good sample."""
    text = f"a {COLOURS[number % len(COLOURS)]} square of shade {number}".encode()
    members = {"image": [(f"{key}.jpg", jpeg(number))], "text": [(f"{key}.txt", text)]}
    return [*members["image"], *members["text"]] if kind == "paired" else members[kind]


def write_shards(folder: Path, counts: list[int], kind: str = "paired") -> Path:
    """Write one shard per count, with keys that are all different."""
    number = 0
    for shard, count in enumerate(counts):
        members: list[tuple[str, bytes]] = []
        for _ in range(count):
            members += sample_members(f"{number:06d}", number, kind)
            number += 1
        write_tar(folder / f"{shard:05d}.tar", members)
    return folder


def experiment(folder: Path, sources: list[dict[str, Any]], global_batch: int = 12, **data: Any) -> Experiment:
    """A tiny experiment that reads `sources`; its cache and vocabulary are in `folder`."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(VOCABULARY) + "\n")
    return Experiment.model_validate(
        {
            "name": "test",
            "model": {"size": "tiny", "image_size": 16, "patch": 8, "text_length": 8, "unpaired_text_length": 12},
            "data": {
                "sources": sources,
                "tokenizer": str(vocabulary),
                "cache": str(folder / "cache"),
                "workers": 0,
                "shuffle_block": 8,
                **data,
            },
            "batch": {"global": global_batch},
            "train": {"length": "10 steps"},
            "engine": {"deepspeed": "none.json"},
        }
    )
