"""How right predictions are, with the interval that the number of samples allows."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def wilson(right: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95% Wilson interval of the share `right` / `total`."""
    share = right / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return centre - half, centre + half


def accuracies(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Return top1 with its interval (low, high), top5 where there are more than five classes, and the class mean.

    scores: (n, classes), the highest is the prediction; labels: (n,). Shares, 0 to 1.
    """
    n, classes = scores.shape
    right = scores.argmax(1) == labels
    low, high = wilson(float(right.sum()), n)
    found = {"top1": float(right.float().mean()), "top1_low": low, "top1_high": high}
    if classes > 5:
        found["top5"] = float((scores.topk(5, dim=1).indices == labels[:, None]).any(1).float().mean())
    found["class_mean"] = sum(per_class(scores, labels).values()) / len(set(labels.tolist()))
    return found


def per_class(scores: Tensor, labels: Tensor) -> dict[int, float]:
    """Return the share of each class's samples that are predicted right, of the classes that occur."""
    right = (scores.argmax(1) == labels).float()
    return {int(c): float(right[labels == c].mean()) for c in labels.unique()}


def confusion(scores: Tensor, labels: Tensor) -> list[list[int]]:
    """Count the samples of each class (row) that are predicted as each class (column)."""
    classes = scores.shape[1]
    counts = torch.bincount(labels * classes + scores.argmax(1), minlength=classes * classes)
    return counts.view(classes, classes).tolist()


def class_rows(scores: Tensor, labels: Tensor, classes: Sequence[str], most: int = 40) -> list[tuple[str, int, float]]:
    """Return (class, samples, share right), the worst first."""
    shares = per_class(scores, labels)
    rows = [(classes[c], int((labels == c).sum()), share) for c, share in shares.items()]
    return sorted(rows, key=lambda row: row[2])[:most]
