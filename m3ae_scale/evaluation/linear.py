"""The linear probe: a BatchNorm without affine, then one linear layer, trained on frozen features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3ae_scale.engine.schedule import warmup_cosine
from m3ae_scale.evaluation.features import FeatureSet
from m3ae_scale.evaluation.lars import LARS

BATCHES = {"sgd": 256, "lars": 16384}  # samples a step; LARS is for large ones
_AT_ONCE = 65536  # rows scored together


@dataclass(frozen=True)
class LinearRecipe:
    """How the head is trained (MAE, appendix A.1; m3ae_public's linear probe), without weight decay."""

    optimizer: Literal["sgd", "lars"] = "sgd"
    lr: float = 0.1  # peak rate per 256 samples
    batch: int | None = None  # samples a step; None: by optimizer
    epochs: int = 90
    warmup: int = 10  # epochs
    momentum: float = 0.9
    seed: int = 0

    @property
    def samples(self) -> int:
        """Samples a step."""
        return self.batch or BATCHES[self.optimizer]


class LinearHead(nn.Module):
    """BatchNorm without affine, then a linear layer (m3ae_public; MAE's main_linprobe)."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, eps=1e-6, affine=False)
        self.linear = nn.Linear(dim, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Score the classes. features: (n, dim) -> logits (n, classes)."""
        return self.linear(self.norm(features))

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Score the classes of any number of rows, on this head's device: (n, dim) -> (n, classes) on the CPU."""
        self.eval()
        device = self.linear.weight.device
        return torch.cat([self(part.to(device)).float().cpu() for part in features.split(_AT_ONCE)])


def train_head(
    data: FeatureSet,
    recipe: LinearRecipe,
    device: torch.device | str = "cpu",
    each_epoch: Callable[[int, float, LinearHead], object] | None = None,
) -> LinearHead:
    """Train a head on `data`; the same seed gives the same head.

    each_epoch: called with the epoch (1, 2, ...), its mean loss and the head as it is then.
    """
    draw = torch.Generator().manual_seed(recipe.seed)
    features, labels = data.features.to(device), data.labels.to(device)
    head = LinearHead(features.shape[1], len(data.classes)).to(device)
    with torch.no_grad():
        head.linear.weight.copy_(0.01 * torch.randn(head.linear.weight.shape, generator=draw))
        head.linear.bias.zero_()
    batch = min(recipe.samples, len(data))
    per_epoch = -(-len(data) // batch)
    peak = recipe.lr * batch / 256
    make = LARS if recipe.optimizer == "lars" else torch.optim.SGD
    optimizer = make(head.parameters(), lr=peak, momentum=recipe.momentum)
    for epoch in range(recipe.epochs):
        head.train()
        order = torch.randperm(len(data), generator=draw).to(device)
        total = torch.zeros((), device=device)
        for i, rows in enumerate(order.chunk(per_epoch)):  # batches of nearly one size: none of a single sample
            step = epoch * per_epoch + i
            lr = warmup_cosine(step, peak, recipe.warmup * per_epoch, recipe.epochs * per_epoch, 0.0)
            optimizer.param_groups[0]["lr"] = lr
            loss = F.cross_entropy(head(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        if each_epoch is not None:
            each_epoch(epoch + 1, float(total) / len(data), head)
    return head.eval()
