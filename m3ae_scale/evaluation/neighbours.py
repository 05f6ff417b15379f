"""Classification by the nearest neighbours in feature space: what a checkpoint is good for without any training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from m3ae_scale.evaluation.features import FeatureSet


@torch.no_grad()
def vote(
    train: FeatureSet, features: Tensor, k: int = 20, temperature: float = 0.07, device: torch.device | str = "cpu"
) -> Tensor:
    """Let the `k` nearest training samples, by cosine, vote with weight exp(cosine / temperature).

    features: (n, dim) -> (n, classes), votes that add up to 1 (Wu et al. 2018, as DINO evaluates).
    """
    k = min(k, len(train))
    bank = F.normalize(train.features.to(device), dim=1)
    one_hot = F.one_hot(train.labels, len(train.classes)).float().to(device)
    votes = []
    for part in features.split(512):
        cosine, nearest = (F.normalize(part.to(device), dim=1) @ bank.T).topk(k, dim=1)
        weight = (cosine / temperature).softmax(1)
        votes.append(torch.einsum("nk,nkc->nc", weight, one_hot[nearest]).cpu())
    return torch.cat(votes)
