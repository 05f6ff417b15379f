"""The trained encoder in a user's hands: images, texts or pairs in, features out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from m3ae_scale.batch import Batch
from m3ae_scale.config import Experiment, KernelConfig, LossConfig, MaskConfig, load_experiment
from m3ae_scale.data.index import index_source
from m3ae_scale.data.pack import pack
from m3ae_scale.data.prepare import Recipe, prepare, recipe_of
from m3ae_scale.data.remote import Cache
from m3ae_scale.data.sample import BadSample, RawSample, Sample
from m3ae_scale.data.shards import ShardFiles
from m3ae_scale.engine.checkpoint import read_weights
from m3ae_scale.errors import InputError
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import Encoder, PlainLayers


@dataclass(frozen=True)
class Features:
    """One row a sample."""

    cls: Tensor  # (n, dim) float32: the CLS token
    mean: Tensor  # (n, dim) float32: the mean of all other tokens
    names: tuple[str, ...]  # (n,)


class PretrainedEncoder(nn.Module):
    """An encoder with the preprocessing that it was trained with."""

    def __init__(self, encoder: Encoder, recipe: Recipe, patch_dim: int):
        super().__init__()
        self.encoder = encoder
        self.recipe = recipe
        self.patch_dim = patch_dim

    def forward(self, batch: Batch) -> Tensor:
        """Encode the visible tokens of a packed batch: (E, dim)."""
        return self.encoder(batch)

    @torch.no_grad()
    def encode(
        self,
        images: Sequence[str | Path | bytes] | None = None,
        texts: Sequence[str] | None = None,
        batch_size: int = 64,
    ) -> Features:
        """Encode images (paths or encoded bytes), texts, or the pairs that they make.

        Raises InputError for an image or a text that cannot be used, and for lists of different length.
        """
        return self.encode_samples(_given(images, texts), batch_size)

    @torch.no_grad()
    def encode_samples(self, samples: Iterable[RawSample], batch_size: int = 64) -> Features:
        """Encode undecoded samples. Raises InputError for one that cannot be used."""
        rows: list[tuple[Tensor, Tensor]] = []
        names: list[str] = []
        stream = iter(samples)
        while chunk := list(islice(stream, batch_size)):
            rows.append(self.pooled(self.pack(chunk)))
            names += [raw.key for raw in chunk]
        if not rows:
            raise InputError("nothing to encode: no image, text or sample was given")
        cls, mean = (torch.cat(column).cpu() for column in zip(*rows, strict=True))
        return Features(cls, mean, tuple(names))

    @torch.no_grad()
    def pooled(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Encode a packed batch: the CLS row and the mean of the other rows of each sample, (S, dim) float32."""
        batch = batch.to(next(self.parameters()).device)
        return pool(self.encoder(batch).float(), batch)

    def pack(self, chunk: Sequence[RawSample]) -> Batch:
        """Prepare and pack undecoded samples, nothing hidden. Raises InputError for one that cannot be used."""
        return pack([prepared(raw, self.recipe) for raw in chunk], LossConfig(), self.patch_dim)


def prepared(raw: RawSample, recipe: Recipe, epoch: int = 0, train: bool = False) -> Sample:
    """Prepare an undecoded sample that nothing can stand in for. Raises InputError for one that cannot be used."""
    try:
        return prepare(raw, recipe, epoch, train)
    except BadSample as reason:
        raise InputError(f"{raw.key}: {reason}; leave it out") from None


def load_encoder(path: str | Path, device: str = "cpu", precision: torch.dtype = torch.float32) -> PretrainedEncoder:
    """Load the encoder of a run folder (its newest good checkpoint) or of one checkpoint folder, ready to evaluate.

    Raises InputError where there is no run, no checkpoint, or a damaged one.
    """
    run = find_run(path)
    experiment, _ = load_experiment(run / "experiment.yaml")
    loaded = build_encoder(experiment, run / "vocab.txt", device, precision)
    loaded.encoder.load_state_dict(read_weights(path, "encoder."))
    return loaded.to(device=device, dtype=precision).eval()


def build_encoder(
    experiment: Experiment, vocabulary: Path, device: str = "cpu", precision: torch.dtype = torch.float32
) -> PretrainedEncoder:
    """Build the encoder of `experiment`, its values not yet set, with the preprocessing that belongs to it."""
    recipe = _whole_view(experiment, vocabulary)
    kernels = choose(KernelConfig(), torch.device(device).type, precision)
    augment = experiment.data.augment
    encoder = Encoder(experiment.model, recipe.tokenizer.size, augment.mean, augment.std, PlainLayers(), kernels)
    return PretrainedEncoder(encoder, recipe, experiment.model.patch_dim)


def find_run(path: str | Path) -> Path:
    """Return the run folder that `path` is or lies in. Raises InputError where there is none."""
    for folder in (Path(path), *Path(path).parents):
        if (folder / "experiment.yaml").is_file():
            return folder
    raise InputError(f"{path}: no experiment.yaml there or above; give a run folder, or a checkpoint inside one")


def save_features(features: Features, path: Path) -> None:
    """Write `features` to a .npz (cls, mean, names) or a .safetensors (cls, mean) file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, cls=features.cls.numpy(), mean=features.mean.numpy(), names=np.array(features.names))
    else:
        save_file({"cls": features.cls, "mean": features.mean}, path)


def shard_samples(pattern: str, kind: str, run: str | Path) -> Iterator[RawSample]:
    """Read every sample of the shards at `pattern`, in their own order, as the run at `run` reads shards."""
    experiment, _ = load_experiment(find_run(run) / "experiment.yaml")
    source = experiment.data.sources[0].model_copy(update={"name": "encode", "shards": pattern, "kind": kind})
    indexed = index_source(source, experiment.data)
    files = ShardFiles(Cache.of(experiment.data))
    try:
        for shard, location in enumerate(indexed.locations):
            for number in range(int(indexed.counts[shard])):
                entry = indexed.entry(shard, number)
                spans = (entry.image if kind != "text" else None, entry.text if kind != "image" else None)
                image, text = (
                    files.read(location, *span, shard_bytes=indexed.bytes_of(shard)) if span else None for span in spans
                )
                yield RawSample("encode", indexed.names[shard], entry.key, indexed.kind, image, text, None)
    finally:
        files.close()


def _whole_view(experiment: Experiment, vocabulary: Path) -> Recipe:
    """The recipe of `experiment` with nothing hidden, and the vocabulary that the run kept."""
    data = experiment.data.model_copy(update={"tokenizer": str(vocabulary)})
    recipe = recipe_of(experiment.model_copy(update={"data": data}))
    nothing_hidden = MaskConfig(image_ratio=0.0, text_ratio=0.0)
    return replace(recipe, mask=nothing_hidden, validation={"encode": experiment.data.sources[0]})


def _given(images: Sequence[str | Path | bytes] | None, texts: Sequence[str] | None) -> Iterator[RawSample]:
    if images is not None and texts is not None and len(images) != len(texts):
        raise InputError(
            f"found {len(images)} images and {len(texts)} texts; pairs need as many of one as of the other"
        )
    kind = "paired" if images is not None and texts is not None else "text" if images is None else "image"
    for i in range(len(images if images is not None else texts or ())):
        image, name = _image(images[i], i) if images is not None else (None, str(i))
        text = texts[i].encode() if texts is not None else None
        yield RawSample("encode", "", name, kind, image, text, None)  # type: ignore[arg-type]


def _image(image: str | Path | bytes, number: int) -> tuple[bytes, str]:
    if isinstance(image, bytes):
        return image, str(number)
    try:
        return Path(image).read_bytes(), str(image)
    except OSError as error:
        raise InputError(f"{image}: cannot read the image ({error.strerror})") from None


def pool(encoded: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the CLS row and the mean of the other rows of each sample, (S, dim) each. encoded: (E, dim)."""
    stream = batch.encoder
    first = stream.cu_seqlens[:-1].long()
    others = (stream.cu_seqlens.diff() - 1).clamp(min=1)
    total = torch.zeros(batch.samples, encoded.shape[1], device=encoded.device)
    total = total.index_add(0, stream.sample, encoded) - encoded[first]
    return encoded[first], total / others[:, None]
