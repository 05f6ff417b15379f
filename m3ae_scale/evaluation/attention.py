"""Where words look: attention from each word of a caption to the patches of its image, layer by layer.

Attention is recomputed from what each block's attention is given; the model and its kernels stay as they are.
"""

import io
import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw
from torch import Tensor

from m3ae_scale.batch import IMAGE, TEXT, Batch
from m3ae_scale.data.sample import RawSample
from m3ae_scale.evaluation.record import Outcome, write_outcome
from m3ae_scale.evaluation.tables import percent
from m3ae_scale.evaluation.whole import Whole, load_whole, read_pairs
from m3ae_scale.kernels.attention import Packing
from m3ae_scale.model import Encoder
from m3ae_scale.model.transformer import Attention
from m3ae_scale.reports.chart import Series, line_chart
from m3ae_scale.reports.page import Section, picture_url
from m3ae_scale.training.caption import font
from m3ae_scale.training.pictures import unpatchify

_CELL, _LABEL, _ACROSS = 128, 30, 6  # pixels of one map and of the word above it; maps in a row


@dataclass(frozen=True)
class Look:
    """The attention of one pair, the mean of all heads."""

    words_to_patches: Tensor  # (layers, words, patches)
    patches_to_words: Tensor  # (layers, patches, words)
    tokens: int  # CLS, patches and words


def attention(path: str, shards: str | None, limit: int, shown: int, layer: int | None, device: str) -> Path:
    """Measure attention between words and patches over `limit` pairs, and draw it for `shown`; returns the page.

    layer: the one that is drawn, from 1; None: the one in which words look at patches most.
    """
    whole = load_whole(path, device)
    pairs = read_pairs(whole, shards, limit)
    looks: list[Look] = []
    for batch in whole.batches(whole.prepared(pairs, 0.0, 0.0)):
        looks += looks_of(whole.model.encoder, batch)
    to_image = torch.stack([look.words_to_patches.sum(-1).mean(-1) for look in looks]).mean(0)
    to_words = torch.stack([look.patches_to_words.sum(-1).mean(-1) for look in looks]).mean(0)
    specific = torch.stack([specificity(look.words_to_patches) for look in looks]).mean(0)
    even = float(np.mean([look.words_to_patches.shape[-1] / look.tokens for look in looks]))
    even_words = float(np.mean([look.words_to_patches.shape[1] / look.tokens for look in looks]))
    drawn = int(to_image.argmax()) if layer is None else min(layer, len(to_image)) - 1
    layers = range(1, len(to_image) + 1)
    outcome = Outcome(
        verb="attention",
        title=f"Where the words of {whole.experiment.name} look",
        lead=f"{len(pairs)} pairs, nothing hidden. A row of attention sums to 1 over CLS, patches and words.",
        settings={"shards": shards or "the run's validation pairs", "pairs": len(pairs), "layer drawn": drawn + 1},
        metrics={
            "words_to_patches": float(to_image[drawn]),
            "words_to_patches_if_even": even,
            "patches_to_words": float(to_words[drawn]),
            "patches_to_words_if_even": even_words,
            "word_specificity": float(specific[drawn]),
        },
        details={
            "by_layer": {
                "words_to_patches": to_image.tolist(),
                "patches_to_words": to_words.tolist(),
                "word_specificity": specific.tolist(),
            }
        },
        tiles=[
            ("words look at patches", percent(float(to_image[drawn])), f"even attention: {percent(even)}"),
            ("patches look at words", percent(float(to_words[drawn])), f"even attention: {percent(even_words)}"),
            ("maps differ by word", percent(float(specific[drawn])), "0%: all words look at the same patches"),
        ],
        sections=[
            Section(
                "By layer",
                charts=[
                    _chart("Attention of words to patches", layers, to_image, even),
                    _chart("Attention of patches to words", layers, to_words, even_words),
                    _chart("How much the maps of a caption's words differ", layers, specific, None),
                ],
                note="Maps differ by the half of the summed absolute difference between a word's map and the mean map "
                "of its caption's words, each scaled to 1.",
            ),
            Section(
                f"Maps in layer {drawn + 1}",
                pictures=[
                    (f"pair {i + 1}", picture_url(_draw(whole, raw, look.words_to_patches[drawn])))
                    for i, (raw, look) in enumerate(zip(pairs[:shown], looks, strict=False))
                ],
                note="Mean of all heads. Each map is scaled by itself: dark is its least, bright its most.",
            ),
        ],
    )
    return write_outcome(outcome, whole.evaluated, whole.evaluated.folder("attention"))


@torch.no_grad()
def looks_of(encoder: Encoder, batch: Batch) -> list[Look]:
    """Run the encoder on `batch` and return the attention of each sample that has an image and words."""
    layers: list[list[Tensor]] = []  # a layer: one (tokens, tokens) a sample

    def note(module: Attention, arguments: tuple[Tensor, Packing]) -> None:
        layers.append(weights_of(module, *arguments))

    with ExitStack() as hooks:
        for block in encoder.transformer.blocks:
            hooks.callback(block.attention.register_forward_pre_hook(note).remove)  # type: ignore[union-attr]
        encoder(batch)
    looks = []
    bounds = batch.encoder.cu_seqlens.tolist()
    for sample in range(batch.samples):
        modality = batch.encoder.modality[bounds[sample] : bounds[sample + 1]].cpu()
        patches, words = modality == IMAGE, modality == TEXT
        if patches.any() and words.any():
            whole = torch.stack([layer[sample].cpu() for layer in layers])
            looks.append(Look(whole[:, words][:, :, patches], whole[:, patches][:, :, words], len(modality)))
    return looks


def weights_of(module: Attention, x: Tensor, packing: Packing) -> list[Tensor]:
    """Recompute the attention of each sample, the mean of all heads. x: (n, dim) -> a (tokens, tokens) per sample."""
    q, k, _ = module.qkv(x).float().view(len(x), 3, -1, module.head_dim).unbind(1)
    bounds = packing.cu_seqlens.tolist()
    found = []
    for start, end in itertools.pairwise(bounds):
        scores = torch.einsum("ihd,jhd->hij", q[start:end], k[start:end]) * module.head_dim**-0.5
        found.append(scores.softmax(-1).mean(0))
    return found


def specificity(maps: Tensor) -> Tensor:
    """Tell how much the maps of a caption's words differ: 0 alike, 1 nowhere alike. maps: (layers, words, patches)."""
    scaled = maps / maps.sum(-1, keepdim=True)
    return (scaled - scaled.mean(1, keepdim=True)).abs().sum(-1).mean(-1) / 2


def _chart(title: str, layers: range, values: Tensor, even: float | None) -> tuple[str, str]:
    lines = [Series("measured", layers, values.tolist(), sparse=True)]
    if even is not None:
        lines.append(Series("if even", layers, [even] * len(layers)))
    return title, line_chart(title, "layer", lines, from_zero=True)


def _draw(whole: Whole, raw: RawSample, maps: Tensor) -> bytes:
    """Draw the image and beside it the map of each word as a PNG. maps: (words, patches)."""
    (sample,) = whole.prepared([raw], 0.0, 0.0)
    assert sample.patches is not None and sample.words is not None
    model = whole.experiment.model
    cells = [("image", Image.fromarray(unpatchify(np.asarray(sample.patches), model.patch)))]
    for word, row in zip(sample.words.tolist(), maps.numpy(), strict=True):
        grid = row.reshape(model.grid, model.grid)
        scaled = (grid - grid.min()) / max(float(np.ptp(grid)), 1e-12)
        colours = (colormaps["cividis"](scaled)[..., :3] * 255).astype(np.uint8)
        cells.append((whole.piece(word), Image.fromarray(colours)))
    return _sheet(cells)


def _sheet(cells: Sequence[tuple[str, Image.Image]]) -> bytes:
    rows = -(-len(cells) // _ACROSS)
    gap = 8
    sheet = Image.new("RGB", (_ACROSS * (_CELL + gap) + gap, rows * (_CELL + _LABEL + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (label, picture) in enumerate(cells):
        x, y = gap + number % _ACROSS * (_CELL + gap), gap + number // _ACROSS * (_CELL + _LABEL + gap)
        smooth = Image.Resampling.BICUBIC if number == 0 else Image.Resampling.NEAREST
        draw.text((x, y), label[:10], (28, 30, 33), font().font_variant(size=17))
        sheet.paste(picture.resize((_CELL, _CELL), smooth), (x, y + _LABEL))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
