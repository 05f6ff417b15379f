"""Detection of samples that are unlike the training set: four scores, and how well each tells in from out."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.covariance import LedoitWolf
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from m3ae_scale.evaluation.features import FeatureSet
from m3ae_scale.evaluation.linear import LinearHead

Scores = NDArray[np.float64]


def familiarity(train: FeatureSet, head: LinearHead, features: Tensor, k: int = 50) -> dict[str, Scores]:
    """Score how much each row is like the training set; higher: more. features: (n, dim) -> (n,) for each name.

    max_softmax (Hendrycks & Gimpel 2017), energy (Liu et al. 2020), mahalanobis: minus the distance to the nearest
    class mean under one covariance for all (Lee et al. 2018), shrunk by Ledoit and Wolf's rule; knn: minus the
    distance to the k-th nearest training sample on the unit sphere (Sun et al. 2022).
    """
    logits = head.logits(features).double()
    return {
        "max_softmax": logits.softmax(1).amax(1).numpy(),
        "energy": logits.logsumexp(1).numpy(),
        "mahalanobis": _mahalanobis(train, features),
        "knn": _nearness(train, features, min(k, len(train))),
    }


def detection(inside: Scores, outside: Scores) -> dict[str, float]:
    """Return how well a score tells `outside` from `inside`, by scikit-learn.

    auroc; aupr, outside being what is looked for; fpr95: the share of outside samples that pass as inside when 95% of
    the inside ones do.
    """
    strange = np.concatenate([np.zeros(len(inside)), np.ones(len(outside))])
    score = -np.concatenate([inside, outside])
    false, true, _ = roc_curve(1 - strange, -score, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(strange, score)),
        "aupr": float(average_precision_score(strange, score)),
        "fpr95": float(false[np.argmax(true >= 0.95)]),
    }


def _mahalanobis(train: FeatureSet, features: Tensor) -> Scores:
    x, labels = train.features.double(), train.labels
    means = torch.stack([x[labels == c].mean(0) for c in labels.unique()])
    place = torch.unique(labels, return_inverse=True)[1]
    precision = torch.from_numpy(LedoitWolf(assume_centered=True).fit((x - means[place]).numpy()).precision_)
    distances = []
    for mean in means:
        away = features.double() - mean
        distances.append(((away @ precision) * away).sum(1))
    return -torch.stack(distances, 1).amin(1).numpy()


def _nearness(train: FeatureSet, features: Tensor, k: int) -> Scores:
    bank = F.normalize(train.features, dim=1)
    found = [(F.normalize(part, dim=1) @ bank.T).topk(k, dim=1).values[:, -1] for part in features.split(512)]
    return torch.cat(found).double().numpy() - 1.0
