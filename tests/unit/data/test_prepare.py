"""Preparing: a function of (seed, epoch, name) alone, and a decided outcome for every imperfect sample."""

import hashlib
import io
import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3ae_scale.config.schema import AugmentConfig, MaskConfig, SourceConfig
from m3ae_scale.data.mask import keep_count
from m3ae_scale.data.prepare import Recipe, prepare
from m3ae_scale.data.rng import stream
from m3ae_scale.data.sample import BadSample, RawSample, Sample
from m3ae_scale.data.scenes.pixels import render
from m3ae_scale.data.scenes.scene import draw_scene
from m3ae_scale.data.scenes.words import describe, tell
from m3ae_scale.data.tokenizer import load_tokenizer, train_vocabulary


def jpeg(seed: int = 0, width: int = 60, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(render(draw_scene(stream(seed)), width, height, stream(seed))).save(buffer, "JPEG")
    return buffer.getvalue()


CAPTION = describe(draw_scene(stream(0)), stream(0)).encode()
LONG = b" ".join(tell(stream(i)).encode() for i in range(40))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    train_vocabulary([tell(stream(i)) for i in range(200)], 500, path)
    dropping = SourceConfig(name="dropping", shards="x", image_drop=0.3, text_drop=0.2)
    plain = SourceConfig(name="plain", shards="x")
    return Recipe(
        seed=7,
        image_size=32,
        patch=8,
        text_length=12,
        unpaired_text_length=40,
        mask=MaskConfig(),
        augment=AugmentConfig(),
        tokenizer=load_tokenizer(path),
        sources={"dropping": dropping, "plain": plain},
        validation={"plain": plain},
    )


def changed(recipe: Recipe, **values: object) -> Recipe:
    return Recipe(**{**vars(recipe), **values})


def raw(kind: str = "paired", source: str = "plain", key: str = "000000001", **parts: bytes | None) -> RawSample:
    given_parts = {"image": jpeg(), "text": CAPTION, "meta": None, **parts}
    return RawSample(source=source, shard="00000", key=key, kind=kind, **given_parts)


def fingerprint(sample: Sample) -> str:
    digest = hashlib.sha256(repr((sample.name, sample.seed)).encode())
    for array in (sample.patches, sample.words, sample.visible_patches, sample.visible_words):
        digest.update(b"none" if array is None else repr((array.shape, array.dtype)).encode() + array.tobytes())
    return digest.hexdigest()


def prepare_elsewhere(pickled: bytes) -> str:
    sample, recipe = pickle.loads(pickled)
    return fingerprint(prepare(sample, recipe, 3, True))


def test_another_process_prepares_the_same_bytes(recipe: Recipe) -> None:
    samples = [raw(key=str(i), image=jpeg(i)) for i in range(4)] + [raw("text", text=LONG), raw("image")]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        elsewhere = pool.map(prepare_elsewhere, [pickle.dumps((s, recipe)) for s in samples])
    here = [fingerprint(prepare(s, recipe, 3, True)) for s in reversed(samples)]
    assert elsewhere == here[::-1]
    assert len(set(here)) == len(samples)


def test_the_name_decides_and_nothing_else(recipe: Recipe) -> None:
    first = fingerprint(prepare(raw(), recipe, 0, True))
    assert first == fingerprint(prepare(raw(), recipe, 0, True, global_step=9))
    assert first != fingerprint(prepare(raw(), recipe, 1, True))
    assert first != fingerprint(prepare(raw(key="000000002"), recipe, 0, True))
    assert first != fingerprint(prepare(raw(), changed(recipe, seed=8), 0, True))


def test_a_mask_does_not_depend_on_the_pixels_or_the_words(recipe: Recipe) -> None:
    one, other = prepare(raw(), recipe, 0, True), prepare(raw(image=jpeg(5, 90, 30)), recipe, 0, True)
    assert np.array_equal(one.visible_patches, other.visible_patches) and one.seed == other.seed
    assert not np.array_equal(one.patches, other.patches)
    alone = prepare(raw("image"), recipe, 0, True)
    assert np.array_equal(one.patches, alone.patches) and np.array_equal(one.visible_patches, alone.visible_patches)


def test_a_pair_has_patches_words_and_masks_of_the_kept_share(recipe: Recipe) -> None:
    sample = prepare(raw(text=LONG), recipe, 0, True)
    assert sample.patches.shape == (16, 192) and sample.patches.dtype == np.uint8
    assert sample.words.shape == (12,) and sample.words.dtype == np.int32
    assert sample.visible_patches.sum() == keep_count(16, 0.75) == 4
    assert sample.visible_words.sum() == keep_count(12, 0.75) == 3
    assert sample.name == "plain/00000/000000001" and 0 <= sample.seed < 2**63


def test_a_text_alone_keeps_more_words_than_a_caption(recipe: Recipe) -> None:
    text = prepare(raw("text", text=LONG, image=None), recipe, 0, True)
    assert len(text.words) == 40 and text.patches is None and text.visible_patches is None
    assert np.array_equal(text.words[:12], prepare(raw(text=LONG), recipe, 0, True).words)


def test_validation_takes_the_centre_and_repeats_itself(recipe: Recipe) -> None:
    views = {prepare(raw(key=str(i)), recipe, 0, False).patches.tobytes() for i in range(5)}
    assert len(views) == 1
    assert len({prepare(raw(key=str(i)), recipe, 0, True).patches.tobytes() for i in range(5)}) == 5


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (raw(image=None), "no image beside its text"),
        (raw(image=None, text=None, meta=b"{}"), "no image beside its json"),
        (raw(image=None, text=None), "no member has a known ending"),
        (raw(text=None), "no text beside its image"),
        (raw("text", text=None), "no text beside its image"),
        (raw("image", image=None, text=None, meta=b"{}"), "no image beside its json"),
        (raw("text", text=b"", image=None), "text is blank"),
        (raw("text", text=b" \n\t ", image=None), "text is blank"),
        (raw("text", text="\u200b\ufeff".encode(), image=None), "nothing that makes a word piece"),
        (raw("text", text=b"caf\xe9", image=None), "not UTF-8: byte 0xe9 at 3"),
        (raw(text=b"\xff\xfe"), "not UTF-8"),
        (raw(image=b""), "zero bytes"),
        (raw(image=jpeg()[:300]), "JPEG|image"),
        (raw("image", image=b"a text file"), "not an image"),
    ],
)
def test_bad_samples_say_why(recipe: Recipe, sample: RawSample, reason: str) -> None:
    with pytest.raises(BadSample, match=reason) as raised:
        prepare(sample, recipe, 0, True)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("blank", [b"", b"  \n", "\u200b".encode()])
def test_a_pair_with_a_blank_caption_is_used_as_an_image(recipe: Recipe, blank: bytes) -> None:
    for epoch in range(20):  # also in the epochs in which its image would be dropped
        sample = prepare(raw(text=blank, source="dropping"), recipe, epoch, True)
        assert sample.patches is not None and sample.words is None and sample.visible_words is None


def test_what_the_kind_does_not_promise_is_not_looked_at(recipe: Recipe) -> None:
    assert prepare(raw("image", text=b"\xff"), recipe, 0, True).words is None
    assert prepare(raw("text", image=b"broken"), recipe, 0, True).patches is None


def test_one_word_has_a_mask(recipe: Recipe) -> None:
    sample = prepare(raw(text=b"a"), recipe, 0, True)
    assert sample.visible_words.tolist() == [False]


def test_drops_turn_pairs_into_unpaired_samples_at_their_rate_anew_each_epoch(recipe: Recipe) -> None:
    recipe = changed(recipe, image_size=8)
    kinds = []
    for i in range(700):
        sample = prepare(raw(source="dropping", key=str(i), text=LONG), recipe, 0, True)
        kinds.append((sample.patches is not None, sample.words is not None))
        if sample.words is not None:
            assert len(sample.words) == (12 if sample.patches is not None else 40)
    share = {kind: kinds.count(kind) / 700 for kind in set(kinds)}
    assert set(share) == {(True, True), (False, True), (True, False)}
    assert share[False, True] == pytest.approx(0.3, abs=0.08)
    assert share[True, False] == pytest.approx(0.2, abs=0.08)
    again = [prepare(raw(source="dropping", key=str(i), text=LONG), recipe, 1, True) for i in range(100)]
    assert kinds[:100] != [(s.patches is not None, s.words is not None) for s in again]


def test_a_dropped_half_must_exist_and_is_not_decoded(recipe: Recipe) -> None:
    epochs = [e for e in range(60) if prepare(raw(source="dropping"), recipe, e, True).patches is None]
    assert epochs
    for epoch in epochs:
        assert prepare(raw(source="dropping", image=b"broken"), recipe, epoch, True).patches is None
        with pytest.raises(BadSample, match="no image"):
            prepare(raw(source="dropping", image=None), recipe, epoch, True)


def test_the_references_rule_draws_one_mask_a_step(recipe: Recipe) -> None:
    recipe = changed(recipe, mask=MaskConfig(rule="reference"))
    short, long = (prepare(raw(key=k, text=t), recipe, 0, True, 5) for k, t in (("1", b"a red star"), ("2", LONG)))
    assert np.array_equal(short.visible_patches, long.visible_patches)
    assert long.visible_words.sum() == keep_count(12, 0.75)  # over all positions; a short text gets its head
    assert np.array_equal(short.visible_words, long.visible_words[: len(short.words)])
    assert not np.array_equal(prepare(raw(), recipe, 0, True, 6).visible_patches, long.visible_patches)
    with pytest.raises(ValueError, match="global_step"):
        prepare(raw(), recipe, 0, True)


@settings(max_examples=50, deadline=None)
@given(image=st.floats(0, 1), text=st.floats(0, 1), key=st.text("0123456789", min_size=1))
def test_any_ratio_shows_the_kept_count(recipe: Recipe, image: float, text: float, key: str) -> None:
    sample = prepare(raw(key=key), changed(recipe, mask=MaskConfig(image_ratio=image, text_ratio=text)), 0, True)
    assert sample.visible_patches.sum() == keep_count(16, image)
    assert sample.visible_words.sum() == keep_count(len(sample.words), text)


def test_a_recipe_is_gathered_from_an_experiment(recipe: Recipe, tmp_path: Path) -> None:
    from m3ae_scale.config.schema import Experiment
    from m3ae_scale.data.prepare import recipe_of

    train_vocabulary([tell(stream(0))], 200, tmp_path / "vocab.txt")
    data = {"sources": [{"name": "a", "shards": "x", "image_drop": 0.5}], "tokenizer": str(tmp_path / "vocab.txt")}
    experiment = Experiment.model_validate(
        {
            "name": "x",
            "seed": 3,
            "model": {"size": "tiny", "image_size": 64, "patch": 8, "text_length": 20},
            "data": data,
            "batch": {"global": 8},
            "train": {"length": "1 epoch"},
            "engine": {"deepspeed": "x.json"},
        }
    )
    gathered = recipe_of(experiment)
    assert (gathered.seed, gathered.image_size, gathered.patch, gathered.text_length) == (3, 64, 8, 20)
    assert gathered.sources["a"].image_drop == 0.5 and gathered.validation == {}


def test_drops_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="add up to more than 1"):
        SourceConfig(name="a", shards="x", image_drop=0.7, text_drop=0.4)
