"""Fine-tuning: layer decay as published, mixing that adds up, and training that learns and resumes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae_scale.config import load_experiment
from m3ae_scale.data.augment import extract_patches
from m3ae_scale.evaluation.classifier import (
    Classifier,
    FinetuneRecipe,
    layer_of,
    parameter_groups,
    score,
    train_classifier,
)
from m3ae_scale.evaluation.encode import load_encoder
from m3ae_scale.evaluation.features import joined
from m3ae_scale.evaluation.labelled import LabelledSet, open_labelled
from m3ae_scale.evaluation.mixing import Mixing, mix, shares, to_images, to_patches
from m3ae_scale.evaluation.scores import accuracies

QUICK = FinetuneRecipe(
    epochs=8, warmup=1, batch=40, lr=1.5e-2, layer_decay=0.9, mixup=0.0, cutmix=0.0, smoothing=0.0, drop_path=0.0
)


def classifier(place: Path, recipe: FinetuneRecipe = QUICK) -> Classifier:
    return Classifier(load_encoder(place / "runs" / "some"), 10, recipe)


def labelled(place: Path, name: str) -> LabelledSet:
    data = load_experiment(place / "runs" / "some" / "experiment.yaml")[0].data
    return open_labelled(str(place / "shards" / name), "image", data)


def of_mae(name: str, depth: int) -> int:
    """The layer by facebookresearch/mae util/lr_decay.py (get_layer_id_for_vit), in terms of our names."""
    if name.startswith("encoder.encoder.embed"):  # cls_token, pos_embed, patch_embed
        return 0
    if name.startswith("encoder.encoder.transformer.blocks"):
        return int(name.split(".")[4]) + 1
    return depth + 1


def test_layer_decay_is_the_published_one(place: Path) -> None:
    model, recipe = classifier(place), replace(QUICK, layer_decay=0.6)
    scale_of = {id(p): group["scale"] for group in parameter_groups(model, recipe) for p in group["params"]}
    depth = 2
    scales = [0.6 ** (depth + 1 - i) for i in range(depth + 2)]  # MAE: layer_scales
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(scale_of) == {id(p) for p in trained.values()}
    for name, parameter in trained.items():
        assert layer_of(name, depth) == of_mae(name, depth)
        assert scale_of[id(parameter)] == pytest.approx(scales[of_mae(name, depth)]), name
    assert scale_of[id(model.head.weight)] == 1.0 and min(scale_of.values()) == pytest.approx(0.6**3)


def test_drop_path_grows_with_depth(place: Path) -> None:
    blocks = classifier(place, replace(QUICK, drop_path=0.1)).encoder.encoder.transformer.blocks
    assert [block.drop_path for block in blocks] == [0.0, 0.1]


def test_patches_and_images_are_each_others_inverse() -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
    patches = torch.from_numpy(np.concatenate([extract_patches(one, 4) for one in image]))
    assert torch.equal(to_images(patches, 3, 4), torch.from_numpy(image))
    assert torch.equal(to_patches(to_images(patches, 3, 4), 3, 4), patches)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([(0.8, 1.0), (0.8, 0.0), (0.0, 1.0), (0.0, 0.0)]), st.floats(0, 0.5))
def test_targets_have_the_shares_of_the_pixels(seed: int, strengths: tuple[float, float], smoothing: float) -> None:
    # The images of class c are all c: the mean of a mixed image then tells the shares.
    labels = torch.tensor([0, 1, 1, 0])
    images = labels.view(4, 1, 1, 1).expand(4, 8, 8, 3).float()
    kept = shares(range(2), 8, Mixing(*strengths, smoothing), seed)
    mixed, targets = mix(images, labels, kept, 2, smoothing)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    torch.testing.assert_close(targets[:, 1], mixed.mean((1, 2, 3)) * (1 - smoothing) + smoothing / 2)
    if strengths == (0.0, 0.0):
        assert torch.equal(mixed, images)
    if strengths == (0.0, 1.0):
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}  # cut, not blended


def test_shares_are_spread_as_their_distributions() -> None:
    mixed = shares(range(400), 4, Mixing(0.8, 0.0)).mean((1, 2))
    cut = shares(range(400), 32, Mixing(0.0, 1.0)).mean((1, 2))
    assert abs(float(mixed.mean()) - 0.5) < 0.06
    assert float(cut.min()) < 0.2 and float(cut.max()) > 0.9 and float(cut.mean()) > 0.5  # boxes are clipped
    # a pair's draw does not depend on who else is drawn
    assert torch.equal(shares(range(7, 9), 4, Mixing(), 3), shares(range(10), 4, Mixing(), 3)[7:9])


def test_fine_tuning_learns_digits_and_shuffled_labels_are_chance(place: Path) -> None:
    train, test = labelled(place, "train").some(400), labelled(place, "test").some(200)
    shuffled = replace(train, labels=np.random.default_rng(0).permutation(train.labels))
    recipe, found = replace(QUICK, epochs=24), {}
    with joined() as groups:
        for name, data in (("true", train), ("shuffled", shuffled)):
            model = classifier(place, recipe)
            train_classifier(model, data, recipe, groups)
            found[name] = accuracies(*score(model, test, groups))["top1"]
    assert found["true"] > 0.4 and found["shuffled"] < 0.2, found


def test_a_resumed_fine_tuning_ends_as_an_undisturbed_one(place: Path, tmp_path: Path) -> None:
    data = labelled(place, "test").some(80)
    recipe = replace(QUICK, epochs=3, mixup=0.8, cutmix=1.0, drop_path=0.1)

    class Killed(Exception):
        pass

    def die(epoch: int, loss: float) -> None:
        if epoch == 2:
            raise Killed

    whole, first, second = (classifier(place, recipe) for _ in range(3))
    with joined() as groups:
        train_classifier(whole, data, recipe, groups)
        with pytest.raises(Killed):
            train_classifier(first, data, recipe, groups, tmp_path / "state.pt", die)
        epochs: list[int] = []
        train_classifier(second, data, recipe, groups, tmp_path / "state.pt", lambda epoch, loss: epochs.append(epoch))
    assert epochs == [3]
    for (name, one), other in zip(whole.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)
