"""Features of a labelled set, computed once for a checkpoint, a set and an input, block by block.

    RUN/features/<key>/00000.safetensors ...    cls and mean of 2048 samples each, (n, dim) float32
    RUN/features/<key>/what.json                what the key stands for

A block that is there is whole: an interrupted run goes on with those that are missing. Ranks share the blocks out.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from m3ae_scale.batch import Batch
from m3ae_scale.config import load_experiment
from m3ae_scale.engine.checkpoint.folder import find_checkpoint
from m3ae_scale.engine.checkpoint.format import MANIFEST
from m3ae_scale.evaluation.ahead import ahead
from m3ae_scale.evaluation.encode import PretrainedEncoder, find_run
from m3ae_scale.evaluation.labelled import Input, LabelledSet, batches, open_labelled
from m3ae_scale.parallel.groups import Groups, close_groups, open_groups
from m3ae_scale.parallel.launch import find_ranks

Pool = Literal["cls", "mean"]
BLOCK = 2048  # samples a file
_CHUNK = 64  # samples a forward pass
_FORMAT = 1  # raised when features of the same inputs would come out otherwise


@dataclass(frozen=True)
class FeatureSet:
    """One row a sample of a labelled set."""

    name: str  # of the set
    features: Tensor  # (n, dim) float32
    labels: Tensor  # (n,) int64
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Extractor:
    """An encoder, and where its features are kept."""

    encoder: PretrainedEncoder
    checkpoint: str  # a digest of the weights and of the preprocessing
    folder: Path  # holds a folder for each set
    groups: Groups
    pool: Pool = "cls"

    def extract(self, data: LabelledSet, taken: Input) -> FeatureSet:
        """Return the features of `data`, computed where they are not kept yet. Every rank must call it.

        Raises InputError for a sample that cannot be used.
        """
        what = {"format": _FORMAT, "checkpoint": self.checkpoint, "data": data.identity, "input": taken}
        key = hashlib.blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()
        folder = self.folder / key
        folder.mkdir(parents=True, exist_ok=True)
        if self.groups.first:
            (folder / "what.json").write_text(json.dumps({**what, "place": data.place}, indent=1) + "\n")
        paths = [(folder / f"{number:05d}.safetensors", rows) for number, rows in enumerate(batches(len(data), BLOCK))]
        missing = [block for block in paths if not block[0].exists()]
        dist.barrier()  # all see the same blocks missing
        for path, rows in missing[self.groups.rank :: self.groups.topology.world]:
            self._compute(data, rows, path)
        dist.barrier()
        features = torch.cat([load_file(path)[self.pool] for path, _ in paths])
        return FeatureSet(data.name, features, torch.from_numpy(data.labels), data.classes)

    def _compute(self, data: LabelledSet, rows: range, path: Path) -> None:
        pooled = [self.encoder.pooled(batch) for batch in self._packed(data, rows)]
        cls, mean = (torch.cat(column).cpu() for column in zip(*pooled, strict=True))
        aside = path.with_suffix(f".partial-{os.getpid()}")
        save_file({"cls": cls, "mean": mean}, aside)
        aside.replace(path)

    def _packed(self, data: LabelledSet, rows: range) -> Iterator[Batch]:
        def work(chunk: range) -> Batch:
            return self.encoder.pack([data.read(rows[i]) for i in chunk])

        return ahead(work, batches(len(rows), _CHUNK), self.groups.topology.world)


@contextmanager
def joined() -> Iterator[Groups]:
    """Join the ranks of this launch, as replicas, and leave them at the end."""
    groups = open_groups(find_ranks(os.environ), 1)
    try:
        yield groups
    finally:
        close_groups()


def identify(path: str | Path) -> str:
    """Return a digest of the weights at `path` (a run folder or a checkpoint) and of how its run prepares samples."""
    run = find_run(path)
    experiment, _ = load_experiment(run / "experiment.yaml")
    hasher = hashlib.blake2b(digest_size=12)
    hasher.update((find_checkpoint(Path(path)) / MANIFEST).read_bytes())
    hasher.update(experiment.model.model_dump_json().encode() + experiment.data.augment.model_dump_json().encode())
    hasher.update((run / "vocab.txt").read_bytes())
    return hasher.hexdigest()


def training_and_test(
    extractor: Extractor, train: str, test: str, taken: Input, label: str | None, run: Path
) -> tuple[FeatureSet, FeatureSet]:
    """Extract the features of a training set, and of a test set whose classes are numbered alike."""
    data = load_experiment(run / "experiment.yaml")[0].data
    trained_on = open_labelled(train, taken, data, label)
    tested_on = open_labelled(test, taken, data, label).of_classes(trained_on.classes)
    return extractor.extract(trained_on, taken), extractor.extract(tested_on, taken)


def shuffled_labels(data: FeatureSet, seed: int = 0) -> FeatureSet:
    """Return `data` with its labels dealt anew: what a probe finds then is chance."""
    order = np.random.default_rng(seed).permutation(len(data))
    return FeatureSet(data.name, data.features, data.labels[torch.from_numpy(order)], data.classes)
