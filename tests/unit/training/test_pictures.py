"""Pictures must show what was masked where, and right from wrong even without colour."""

import numpy as np
import pytest
import torch
from PIL import Image

from m3ae_scale.config import LossConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.training.caption import Word, caption_strip
from m3ae_scale.training.pictures import (
    HIDDEN,
    Example,
    examples,
    masked_view,
    reconstruction_sheet,
    sheet_path,
    unpatchify,
)


def patchify(image, patch):
    rows = image.shape[0] // patch
    return image.reshape(rows, patch, rows, patch, 3).swapaxes(1, 2).reshape(rows * rows, -1)


def test_unpatchify_agrees_with_the_official_merge_patches(root):
    recorded = np.load(root / "tests/fixtures/m3ae_public/misc.npz")
    for patches, image in zip(recorded["patches/extract_p4"], recorded["patches/image_8x8"], strict=True):
        assert np.array_equal(unpatchify(patches, 4), image)


def test_masked_view_hides_what_is_not_visible_and_nothing_else():
    image = np.random.default_rng(0).integers(0, 200, (12, 12, 3), np.uint8)
    visible = np.array([[True, False, True], [False, True, False], [True, True, False]])
    view = masked_view(image, visible, 4)
    for row in range(3):
        for column in range(3):
            square = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            expected = image[square] if visible[row, column] else np.full((4, 4, 3), HIDDEN)
            assert np.array_equal(view[square], expected)


def sample(rng, patches, words):
    mask = np.arange(4) % 2 == 0
    return Sample(
        name="a/b/c",
        patches=patches,
        visible_patches=None if patches is None else mask,
        words=None if words is None else np.array(words),
        visible_words=None if words is None else np.arange(len(words)) < 2,
        seed=1,
    )


def test_examples_cut_a_mixed_batch_where_its_samples_lie():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (8, 8, 3), np.uint8) for _ in range(2)]
    first, second = (patchify(image, 4) for image in images)
    batch = pack(
        [
            sample(rng, first, [10, 11, 12]),
            sample(rng, None, [20, 21, 22, 23]),
            sample(rng, second, None),
            sample(rng, None, [30]),
        ],
        LossConfig(),
        patch_dim=48,
    )
    targets = batch.image_targets.token
    black = torch.zeros(len(targets), 48, dtype=torch.uint8)
    truth = batch.words[batch.text_targets.token]
    guess = torch.where(truth == 22, 99, truth)
    cut = examples(batch, black, guess, patch=4, piece=str, limit=3)

    assert len(cut) == 3 and cut[1].image is None
    for example, image in ((cut[0], images[0]), (cut[2], images[1])):
        assert np.array_equal(example.image, image)
        assert example.visible.tolist() == [[True, False], [True, False]]
        assert np.array_equal(example.reconstruction[:, :4], image[:, :4]) and not example.reconstruction[:, 4:].any()
    assert list(cut[0].words) == [Word("10", True), Word("11", True), Word("12", False, "12")]
    assert list(cut[1].words)[2:] == [Word("22", False, "99"), Word("23", False, "23")]
    assert not cut[2].words
    assert examples(batch, None, guess, patch=4, piece=str, limit=1)[0].reconstruction is None


def grey(picture):
    return np.asarray(picture.convert("L"))


def test_right_wrong_and_visible_words_differ_without_colour():
    words = [Word("red", True), Word("red", False, "red"), Word("red", False), Word("red", False, "tan")]
    strips = [grey(caption_strip([word], 400)) for word in words]
    for i, one in enumerate(strips):
        for other in strips[i + 1 :]:
            assert (np.abs(one.astype(int) - other) > 60).sum() > 20


@pytest.mark.parametrize("width", [300, 600])
def test_a_caption_breaks_between_words_and_stays_inside(width):
    words = [Word(w, False, "circle") for w in ("caption", "longer", "than", "one", "line") * 3]
    strip = grey(caption_strip(words, width))
    assert (strip[:, -1] == 255).all()
    assert strip.shape[0] > grey(caption_strip(words, 5000)).shape[0]


def test_a_sheet_of_every_kind_of_sample_is_drawn(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    visible = np.eye(2, dtype=bool)
    words = [Word("a", True), Word("##b", False, "##b"), Word("c", False, "d")]
    sheet = [
        Example(image, visible, image[::-1], words),
        Example(image, visible, None),
        Example(None, None, None, words),
    ]
    path = sheet_path(tmp_path, 120)
    reconstruction_sheet(sheet, path)
    picture = np.asarray(Image.open(path))
    reconstruction_sheet([Example(image, visible, image, words), *sheet[1:]], path)
    other = np.asarray(Image.open(path))
    assert picture.shape == other.shape and (picture != other).any()
