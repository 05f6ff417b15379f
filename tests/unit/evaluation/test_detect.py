"""Detection scores on features whose geometry is known, and the figures of detection on worked examples."""

import numpy as np
import pytest
import torch

from m3ae_scale.evaluation.detect import detection, familiarity
from m3ae_scale.evaluation.features import FeatureSet
from m3ae_scale.evaluation.linear import LinearRecipe, train_head
from m3ae_scale.evaluation.plane import layouts, separation


def clouds(n: int, seed: int, classes: int = 4, dim: int = 8) -> FeatureSet:
    """Class c lies around 6 e_c."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return FeatureSet("clouds", torch.randn(n, dim, generator=draw) + 6 * torch.eye(dim)[labels], labels, tuple("abcd"))


def test_every_score_knows_what_lies_elsewhere() -> None:
    train, test = clouds(400, 0), clouds(200, 1)
    far = -6 * torch.eye(8)[torch.arange(200) % 4] + torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
    head = train_head(train, LinearRecipe(epochs=10, warmup=1))
    inside, outside = (familiarity(train, head, features, k=10) for features in (test.features, far))
    assert set(inside) == {"max_softmax", "energy", "mahalanobis", "knn"}
    for name in inside:
        assert detection(inside[name], outside[name])["auroc"] > 0.8, name
        assert abs(detection(inside[name][::2], inside[name][1::2])["auroc"] - 0.5) < 0.15, name


def test_mahalanobis_is_the_distance_to_the_nearest_mean_under_the_shared_covariance() -> None:
    train = clouds(2000, 0)
    head = train_head(train, LinearRecipe(epochs=1))
    found = familiarity(train, head, train.features[:50])["mahalanobis"]
    x = train.features.double().numpy()
    means = np.stack([x[train.labels.numpy() == c].mean(0) for c in range(4)])
    centred = x - means[train.labels.numpy()]
    inverse = np.linalg.inv(centred.T @ centred / len(x))
    expected = [-min((row - m) @ inverse @ (row - m) for m in means) for row in x[:50]]
    np.testing.assert_allclose(found, expected, rtol=0.1)  # shrunk a little


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        ([3, 4, 5], [0, 1, 2], {"auroc": 1.0, "aupr": 1.0, "fpr95": 0.0}),
        ([0, 1, 2], [3, 4, 5], {"auroc": 0.0, "fpr95": 1.0}),
        ([1, 3], [0, 2], {"auroc": 0.75, "fpr95": 0.5}),  # of four pairs, one is the wrong way round
    ],
)
def test_detection_on_worked_examples(inside: list[int], outside: list[int], expected: dict[str, float]) -> None:
    found = detection(np.array(inside, float), np.array(outside, float))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name


def test_a_layout_keeps_clouds_apart_and_shuffled_labels_are_chance() -> None:
    data = clouds(120, 0)
    found = layouts(data.features)
    assert found["t-SNE"].shape == (120, 2)
    for places in found.values():
        assert separation(places, data.labels) > 0.9
        assert separation(places, data.labels[torch.randperm(120, generator=torch.Generator().manual_seed(0))]) < 0.4
