"""A labelled set no one here drew: scikit-learn's handwritten digits, as class folders and as shards; and a run."""

import io
import json
import tarfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from m3ae_scale.config import load_experiment
from m3ae_scale.engine.checkpoint.files import TensorFile
from m3ae_scale.engine.checkpoint.folder import begin, next_serial, publish
from m3ae_scale.engine.checkpoint.format import KINDS, Manifest, write_manifest
from m3ae_scale.evaluation.encode import build_encoder
from m3ae_scale.model.init import draw

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAIN, TEST = slice(0, 1200), slice(1200, 1797)
PIECES = ["[PAD]", "[UNK]", *WORDS, "a", "digit"]


@lru_cache(maxsize=1)
def pictures() -> tuple[list[bytes], list[int]]:
    """PNGs of 16 x 16 pixels, dark on light, and what each shows."""
    data = load_digits()
    files = []
    for image in data.images:
        grey = Image.fromarray((255 - image * 255 / 16).astype(np.uint8)).resize((16, 16), Image.Resampling.BICUBIC)
        grey.convert("RGB").save(file := io.BytesIO(), "PNG")
        files.append(file.getvalue())
    return files, data.target.tolist()


def write_folders(root: Path, part: slice) -> Path:
    files, labels = pictures()
    for number, (file, label) in enumerate(zip(files[part], labels[part], strict=True)):
        folder = root / WORDS[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.png").write_bytes(file)
    return root


def write_shards(root: Path, part: slice, label: str = "cls") -> Path:
    """Shards with a text that is no use ("a digit"), and the label in cls or under "label" of the json."""
    files, labels = pictures()
    rows = list(zip(files[part], labels[part], strict=True))
    root.mkdir(parents=True, exist_ok=True)
    for shard, first in enumerate(range(0, len(rows), 400)):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for i, (file, digit) in enumerate(rows[first : first + 400]):
                told = {"cls": str(digit).encode()} if label == "cls" else {"json": json.dumps({label: digit}).encode()}
                for ending, content in {"png": file, "txt": b"a digit", **told}.items():
                    member = tarfile.TarInfo(f"{first + i:06d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root


def write_run(folder: Path) -> Path:
    """A run folder with a checkpoint of initial values: what its features tell, chance does not."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    experiment = {
        "name": folder.name,
        "model": {
            "encoder": {"dim": 48, "depth": 2, "heads": 4, "mlp_dim": 96},
            "decoder": {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32},
            "image_size": 16,
            "patch": 4,
            "text_length": 8,
        },
        "data": {
            "sources": [{"name": "none", "shards": "none"}],
            "tokenizer": str(folder / "vocab.txt"),
            "augment": {"crop_scale": [0.7, 1.0], "flip": 0.0},
        },
        "batch": {"global": 8},
        "train": {"length": "1 steps"},
        "engine": {"deepspeed": "none"},
        "run": {"folder": str(folder.parent)},
    }
    (folder / "experiment.yaml").write_text(yaml.safe_dump(experiment))
    encoder = build_encoder(load_experiment(folder / "experiment.yaml")[0], folder / "vocab.txt").encoder
    values = {f"encoder.{name}": draw(f"encoder.{name}", p.shape, 0).numpy() for name, p in encoder.named_parameters()}
    shapes = {name: value.shape for name, value in values.items()}
    aside, files = begin(folder, 1), {}
    for kind in KINDS:
        file = TensorFile(aside / f"{kind}-00001.safetensors", list(shapes.items()))
        for value in values.values():
            file.write(value)
        files[f"{kind}-00001.safetensors"] = file.finish()
    places = {name: {kind: f"{kind}-00001.safetensors" for kind in KINDS} for name in shapes}
    manifest = Manifest(1, next_serial(folder), "2026-01-01T00:00:00+00:00", 1, {}, {"step": 1}, shapes, places, files)
    write_manifest(manifest, aside)
    publish(aside)
    return folder
