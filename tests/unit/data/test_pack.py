"""Packing: the Batch holds the samples, whole and in order; checked by a second, token-by-token reading of it."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae_scale.batch import CLS, IMAGE, TEXT, Batch, Stream
from m3ae_scale.config.schema import LossConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample

PATCH_DIM = 12


@st.composite
def samples(draw: st.DrawFn, normalised: bool = False) -> Sample:
    """Any sample: with or without image and text, any masks, sometimes words at places of their own."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    patches = draw(st.sampled_from([None, 0, 1, 4, 9]))
    words = draw(st.sampled_from([None, 0, 1, 3, 8]))
    shown = draw(st.sampled_from([0.0, 0.3, 1.0]))
    pixels = None
    if patches is not None:
        pixels = rng.integers(0, 256, (patches, PATCH_DIM)).astype(np.uint8)
        pixels = rng.standard_normal((patches, PATCH_DIM)).astype(np.float32) if normalised else pixels
    positions = None
    if words is not None and draw(st.booleans()):
        positions = np.sort(rng.choice(20, words, replace=False)).astype(np.int64)
    return Sample(
        name=f"s/{rng.integers(10**9)}",
        patches=pixels,
        words=None if words is None else rng.integers(0, 30000, words).astype(np.int32),
        visible_patches=None if patches is None else rng.random(patches) < shown,
        visible_words=None if words is None else rng.random(words) < shown,
        seed=int(rng.integers(2**62)),
        word_positions=positions,
    )


def lists_of_samples() -> st.SearchStrategy[list[Sample]]:
    return st.booleans().flatmap(lambda normalised: st.lists(samples(normalised), max_size=5))


LOSSES = st.builds(LossConfig, all_image_tokens=st.booleans(), all_text_tokens=st.booleans())

Token = tuple[int, int, tuple[float, ...] | int | None]  # modality, position, content


def tokens_of(sample: Sample) -> tuple[list[Token], list[bool]]:
    """The tokens of a sample, [CLS, patches, words], and for each whether the encoder sees it."""
    tokens: list[Token] = [(CLS, 0, None)]
    seen = [True]
    if sample.patches is not None:
        for i, patch in enumerate(sample.patches):
            tokens.append((IMAGE, i, tuple(patch.tolist())))
            seen.append(bool(sample.visible_patches[i]))
    if sample.words is not None:
        for i, word in enumerate(sample.words):
            place = i if sample.word_positions is None else int(sample.word_positions[i])
            tokens.append((TEXT, place, int(word)))
            seen.append(bool(sample.visible_words[i]))
    return tokens, seen


def content(batch: Batch, modality: int, row: int) -> tuple[float, ...] | int | None:
    if modality == CLS:
        return None
    return tuple(batch.patches[row].tolist()) if modality == IMAGE else int(batch.words[row])


def pieces(batch: Batch) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(modality, row of patches or words) of every row of the two concatenations, as the docstring of Stream says."""
    encoder = [(CLS, 0)] * batch.samples
    encoder += [(IMAGE, int(r)) for r in batch.visible_patches] + [(TEXT, int(r)) for r in batch.visible_words]
    hidden_patches = [r for r in range(len(batch.patches)) if r not in set(batch.visible_patches.tolist())]
    hidden_words = [r for r in range(len(batch.words)) if r not in set(batch.visible_words.tolist())]
    stream = [encoder[i] for i in batch.encoder.order.tolist()]
    return encoder, stream + [(IMAGE, r) for r in hidden_patches] + [(TEXT, r) for r in hidden_words]


def read_stream(batch: Batch, stream: Stream, concatenation: list[tuple[int, int]]) -> list[list[Token]]:
    """The tokens of each sample, read row by row from a stream."""
    assert len(concatenation) == len(stream.order)
    read: list[list[Token]] = []
    for s in range(batch.samples):
        run: list[Token] = []
        for row in range(int(stream.cu_seqlens[s]), int(stream.cu_seqlens[s + 1])):
            modality, source = concatenation[int(stream.order[row])]
            assert int(stream.modality[row]) == modality and int(stream.sample[row]) == s
            run.append((modality, int(stream.position[row]), content(batch, modality, source)))
        read.append(run)
    return read


@settings(max_examples=200, deadline=None)
@given(given_samples=lists_of_samples(), loss=LOSSES)
def test_the_samples_can_be_read_back(given_samples: list[Sample], loss: LossConfig) -> None:
    batch = pack(given_samples, loss, PATCH_DIM)
    encoder, decoder = pieces(batch)
    expected = [tokens_of(s) for s in given_samples]
    assert read_stream(batch, batch.decoder, decoder) == [tokens for tokens, _ in expected]
    assert read_stream(batch, batch.encoder, encoder) == [
        [t for t, seen in zip(tokens, shown, strict=True) if seen] for tokens, shown in expected
    ]
    assert batch.keys == tuple(s.name for s in given_samples)
    assert batch.sample_seed.tolist() == [s.seed for s in given_samples]
    assert batch.has_image.tolist() == [s.patches is not None and len(s.patches) > 0 for s in given_samples]
    assert batch.has_text.tolist() == [s.words is not None and len(s.words) > 0 for s in given_samples]


@settings(max_examples=200, deadline=None)
@given(given_samples=lists_of_samples(), loss=LOSSES)
def test_streams_are_permutations_and_cover_every_row(given_samples: list[Sample], loss: LossConfig) -> None:
    batch = pack(given_samples, loss, PATCH_DIM)
    for stream in (batch.encoder, batch.decoder):
        n = len(stream.order)
        assert sorted(stream.order.tolist()) == list(range(n))
        assert torch.equal(stream.order[stream.inverse], torch.arange(n))
        assert int(stream.cu_seqlens[0]) == 0 and int(stream.cu_seqlens[-1]) == n
        lengths = stream.cu_seqlens.diff().tolist()
        assert stream.max_seqlen == max(lengths, default=0)
        assert all(length >= 1 for length in lengths)  # CLS at least
        assert stream.cu_seqlens.dtype == torch.int32
        for tensor in (stream.order, stream.inverse, stream.modality, stream.position, stream.sample):
            assert tensor.dtype == torch.int64 and tensor.shape == (n,)


@settings(max_examples=200, deadline=None)
@given(given_samples=lists_of_samples(), loss=LOSSES)
def test_targets_are_the_hidden_tokens_or_all(given_samples: list[Sample], loss: LossConfig) -> None:
    batch = pack(given_samples, loss, PATCH_DIM)
    for modality, targets, every in (
        (IMAGE, batch.image_targets, loss.all_image_tokens),
        (TEXT, batch.text_targets, loss.all_text_tokens),
    ):
        expected: list[tuple[int, Token]] = []
        for s, sample in enumerate(given_samples):
            for token, seen in zip(*tokens_of(sample), strict=True):
                if token[0] == modality and (every or not seen):
                    expected.append((s, token))
        found = [
            (s, (int(batch.decoder.modality[row]), int(batch.decoder.position[row]), content(batch, modality, token)))
            for row, token, s in zip(targets.row.tolist(), targets.token.tolist(), targets.sample.tolist(), strict=True)
        ]
        assert found == expected
        assert batch.decoder.sample[targets.row].tolist() == targets.sample.tolist()
        counts = [sum(s == other for other, _ in expected) for s, _ in expected]
        assert targets.weight.tolist() == pytest.approx([1 / c for c in counts])
        assert targets.weight.dtype == torch.float32


def sample(patches: int | None, words: int | None, shown: bool = False) -> Sample:
    return Sample(
        name="s",
        patches=None if patches is None else np.zeros((patches, PATCH_DIM), np.uint8),
        words=None if words is None else np.zeros(words, np.int32),
        visible_patches=None if patches is None else np.full(patches, shown),
        visible_words=None if words is None else np.full(words, shown),
        seed=1,
    )


@pytest.mark.parametrize(
    "content",
    [
        [],
        [sample(None, 3)],
        [sample(4, None)],
        [sample(None, 1), sample(4, None)],
        [sample(4, 1, shown=True)],
        [sample(4, 1, shown=False)],
    ],
    ids=["no samples", "no images", "no words", "one of each", "nothing hidden", "everything hidden"],
)
def test_empty_parts_keep_their_shape_and_type(content: list[Sample]) -> None:
    """ZeRO-3 needs every rank to run every layer: a missing modality is a tensor of zero rows, not a missing one."""
    batch = pack(content, LossConfig(), PATCH_DIM)
    assert batch.patches.shape[1] == PATCH_DIM and batch.patches.dtype == torch.uint8
    assert batch.words.dtype == torch.int64
    assert batch.tokens == sum(len(tokens_of(s)[0]) for s in content)
    for targets in (batch.image_targets, batch.text_targets):
        assert all(getattr(targets, f.name).shape == targets.row.shape for f in fields(targets))


def test_normalised_patches_stay_float32() -> None:
    floats = sample(4, 2)
    floats = Sample(**{**vars(floats), "patches": np.full((4, PATCH_DIM), 0.5, np.float32)})
    batch = pack([floats], LossConfig(), PATCH_DIM)
    assert batch.patches.dtype == torch.float32 and batch.patches.unique().tolist() == [0.5]
