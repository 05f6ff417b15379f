"""A classifier made of an encoder and a linear layer, trained as a whole: fine-tuned, or from scratch as a baseline."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from m3ae_scale.batch import Batch
from m3ae_scale.config import LossConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.rng import stream
from m3ae_scale.engine.schedule import warmup_cosine
from m3ae_scale.errors import InputError
from m3ae_scale.evaluation.ahead import ahead
from m3ae_scale.evaluation.encode import PretrainedEncoder, pool, prepared
from m3ae_scale.evaluation.labelled import LabelledSet, batches
from m3ae_scale.evaluation.mixing import Mixing, mix, shares, to_images, to_patches
from m3ae_scale.model.init import decays
from m3ae_scale.model.pixels import normalise
from m3ae_scale.parallel.groups import Groups

_CHUNK = 64  # samples scored at once


@dataclass(frozen=True)
class FinetuneRecipe:
    """AdamW with a rate that falls towards the input, as BEiT, MAE and M3AE fine-tune."""

    lr: float = 1e-3  # peak rate per 256 samples
    batch: int = 256  # samples a step, over all ranks
    epochs: int = 50
    warmup: int = 5  # epochs
    layer_decay: float = 0.6  # each layer has this share of the rate of the layer above
    weight_decay: float = 0.05
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    drop_path: float = 0.1  # of the last block; it grows from 0 at the first
    pool: Literal["cls", "mean"] = "mean"
    seed: int = 0


class Classifier(nn.Module):
    """The encoder's pooled tokens, scored by one linear layer."""

    def __init__(self, encoder: PretrainedEncoder, classes: int, recipe: FinetuneRecipe):
        super().__init__()
        self.encoder = encoder
        self.cls = recipe.pool == "cls"
        blocks = encoder.encoder.transformer.blocks
        for i, block in enumerate(blocks):
            block.drop_path = recipe.drop_path * i / max(1, len(blocks) - 1)  # type: ignore[assignment]
        self.head = nn.Linear(encoder.encoder.embed.cls_token.shape[0], classes)
        draw = torch.Generator().manual_seed(recipe.seed)
        with torch.no_grad():
            self.head.weight.copy_(2e-5 * torch.randn(self.head.weight.shape, generator=draw))
            self.head.bias.zero_()
        for name, parameter in encoder.named_parameters():
            if name.endswith(("embed.text.weight", "text_type")):  # no text comes in: no gradient goes there
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> Tensor:
        """Score the classes of each sample of a packed batch: (S, classes)."""
        cls, mean = pool(self.encoder(batch), batch)
        return self.head(cls if self.cls else mean)


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a classifier's parameter: 0 the embedding, 1 to `depth` the blocks, `depth` + 1 the rest."""
    if ".embed." in name:
        return 0
    if ".blocks." in name:
        return int(name.partition(".blocks.")[2].partition(".")[0]) + 1
    return depth + 1


def parameter_groups(model: Classifier, recipe: FinetuneRecipe) -> list[dict[str, Any]]:
    """Group parameters by rate and decay; "scale" is their share of the rate.

    A layer l of depth + 1 has layer_decay ** (depth + 1 - l) (BEiT; facebookresearch/mae util/lr_decay.py).
    """
    depth = len(model.encoder.encoder.transformer.blocks)
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault((layer_of(name, depth), decays(name)), []).append(parameter)
    return [
        {
            "params": parameters,
            "scale": recipe.layer_decay ** (depth + 1 - layer),
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (layer, decayed), parameters in found.items()
    ]


def train_classifier(
    model: Classifier,
    data: LabelledSet,
    recipe: FinetuneRecipe,
    groups: Groups,
    state: Path | None = None,
    each_epoch: Callable[[int, float], object] | None = None,
) -> None:
    """Train `model` on the images of `data`. Every rank must call it, with the same values in `model`.

    state: a file to go on from and to write after each epoch; None: neither.
    each_epoch: called with the epoch (1, 2, ...) and its mean loss.
    Raises InputError for a batch that does not divide into pairs on every rank, or an image that cannot be used.
    """
    world = groups.topology.world
    batch = min(recipe.batch, len(data) // (2 * world) * 2 * world)  # of a small set, all of it
    if batch == 0 or batch % (2 * world):
        raise InputError(f"--batch: found {batch}, expected a multiple of {2 * world}: a pair to mix on each rank")
    model.to(groups.device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe), lr=0.0, betas=(0.9, 0.999))
    begun = _load(state, model, optimizer)
    trained = DistributedDataParallel(model) if world > 1 else model
    steps = len(data) // batch
    peak = recipe.lr * batch / 256
    for epoch in range(begun, recipe.epochs):
        total = torch.zeros((), dtype=torch.float64, device=groups.device)
        for step, (packed, targets) in enumerate(_batches(model, data, recipe, groups, epoch, batch, steps)):
            lr = warmup_cosine(epoch * steps + step, peak, recipe.warmup * steps, recipe.epochs * steps, 0.0)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            loss = -(targets * trained(packed).float().log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach()
        dist.all_reduce(total)
        if groups.first:
            _save(state, model, optimizer, epoch + 1)
        if each_epoch is not None:
            each_epoch(epoch + 1, float(total) / steps / world)
    model.eval()


def _batches(
    model: Classifier, data: LabelledSet, recipe: FinetuneRecipe, groups: Groups, epoch: int, batch: int, steps: int
) -> Iterator[tuple[Batch, Tensor]]:
    """This rank's share of each global batch, prepared in threads, mixed on the device; and its targets."""
    order = stream(recipe.seed, epoch, "finetune order").permutation(len(data))
    share = batch // groups.topology.world
    mixing = Mixing(recipe.mixup, recipe.cutmix, recipe.smoothing)
    view = replace(model.encoder.recipe, seed=recipe.seed)
    grid, patch = view.image_size // view.patch, view.patch

    def work(step: int) -> tuple[Batch, Tensor, Tensor]:
        first = step * batch + groups.rank * share
        rows = order[first : first + share]
        samples = [prepared(data.read(int(row)), view, epoch, train=True) for row in rows]
        pairs = range(groups.rank * share // 2, (groups.rank + 1) * share // 2)
        kept = shares(pairs, view.image_size, mixing, recipe.seed, epoch, step)
        return pack(samples, LossConfig(), model.encoder.patch_dim), torch.from_numpy(data.labels[rows]), kept

    augment = view.augment
    for packed, labels, kept in ahead(work, range(steps), groups.topology.world):
        on_device = packed.to(groups.device)
        images = to_images(normalise(on_device.patches, augment.mean, augment.std), grid, patch)
        mixed, targets = mix(
            images, labels.to(groups.device), kept.to(groups.device), len(data.classes), recipe.smoothing
        )
        yield replace(on_device, patches=to_patches(mixed, grid, patch)), targets


@torch.no_grad()
def score(model: Classifier, data: LabelledSet, groups: Groups) -> tuple[Tensor, Tensor]:
    """Return the logits (n, classes) and the labels (n,) of `data`. Every rank must call it, and takes a share."""
    model.eval()
    mine: dict[int, Tensor] = {}
    chunks = list(batches(len(data), _CHUNK))
    for number in range(groups.rank, len(chunks), groups.topology.world):
        packed = model.encoder.pack([data.read(i) for i in chunks[number]])
        mine[number] = model(packed.to(groups.device)).float().cpu()
    every: list[dict[int, Tensor]] = [{} for _ in range(groups.topology.world)]
    dist.all_gather_object(every, mine)
    found = {number: logits for part in every for number, logits in part.items()}
    return torch.cat([found[number] for number in range(len(chunks))]), torch.from_numpy(data.labels)


def _save(state: Path | None, model: Classifier, optimizer: torch.optim.Optimizer, epoch: int) -> None:
    if state is None:
        return
    state.parent.mkdir(parents=True, exist_ok=True)
    aside = state.with_suffix(".partial")
    torch.save({"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, aside)
    aside.replace(state)


def _load(state: Path | None, model: Classifier, optimizer: torch.optim.Optimizer) -> int:
    if state is None or not state.exists():
        return 0
    kept = torch.load(state, map_location="cpu", weights_only=True)
    model.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    return int(kept["epoch"])
