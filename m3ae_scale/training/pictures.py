"""Reconstruction sheets: what went in, what the encoder saw, what the decoder made of it, as one PNG.

`examples` cuts a batch into examples, `reconstruction_sheet` draws them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from m3ae_scale.batch import TEXT, Batch
from m3ae_scale.training.caption import FAINT, Word, caption_strip, font, legend_strip

HIDDEN = 222  # grey of a hidden patch in masked_view, 0 to 255


@dataclass(frozen=True)
class Example:
    """One sample and what was made of it; a sample without image has None in the first three."""

    image: np.ndarray | None  # (H, W, 3) uint8, square
    visible: np.ndarray | None  # (rows, columns) bool, True: the encoder saw the patch
    reconstruction: np.ndarray | None  # (H, W, 3) uint8
    words: Sequence[Word] = ()


def unpatchify(patches: np.ndarray, patch: int) -> np.ndarray:
    """Put the patches of a square image back in their places.

    patches: (rows * rows, patch * patch * 3), row-major, inner order (row, col, channel) -> (H, W, 3).
    """
    rows = round(len(patches) ** 0.5)
    grid = patches.reshape(rows, -1, patch, patch, 3)
    return grid.swapaxes(1, 2).reshape(rows * patch, -1, 3)


def masked_view(image: np.ndarray, visible: np.ndarray, patch: int) -> np.ndarray:
    """Return `image` (H, W, 3) uint8 with the patches that are not `visible` (rows, columns) painted grey."""
    pixels = visible.repeat(patch, 0).repeat(patch, 1)[..., None]
    return np.where(pixels, image, np.uint8(HIDDEN))


def examples(
    batch: Batch, patches: Tensor | None, words: Tensor, patch: int, piece: Callable[[int], str], limit: int
) -> list[Example]:
    """Cut the first `limit` samples out of `batch` (uint8 patches) and what was predicted for its targets.

    patches: (image targets, patch * patch * 3) uint8; None: the model predicts no pixels
    words: (text targets,) word ids
    piece: id -> word piece
    Patches that were not predicted, visible ones mostly, stand in the reconstruction as they are in the image.
    """
    batch = batch.to("cpu", non_blocking=False)
    true_patches, true_words = batch.patches.numpy(), batch.words.tolist()
    rebuilt = true_patches.copy()
    if patches is not None:
        rebuilt[batch.image_targets.token.numpy()] = patches.cpu().numpy()
    guesses = dict(zip(batch.text_targets.token.tolist(), words.tolist(), strict=True))
    seen_patches = np.zeros(len(true_patches), bool)
    seen_patches[batch.visible_patches.numpy()] = True
    seen_words = set(batch.visible_words.tolist())
    word_counts = batch.decoder.sample[batch.decoder.modality == TEXT].bincount(minlength=batch.samples).tolist()
    has_image = batch.has_image.tolist()
    per_image = len(true_patches) // max(1, sum(has_image))
    grid = round(per_image**0.5)

    cut: list[Example] = []
    first_patch = first_word = 0
    for sample in range(min(limit, batch.samples)):
        captions = [
            Word(piece(true_words[i]), i in seen_words, piece(guesses[i]) if i in guesses else None)
            for i in range(first_word, first_word + word_counts[sample])
        ]
        first_word += word_counts[sample]
        if has_image[sample]:
            rows = slice(first_patch, first_patch + per_image)
            image, reconstruction = unpatchify(true_patches[rows], patch), unpatchify(rebuilt[rows], patch)
            visible = seen_patches[rows].reshape(grid, grid)
            cut.append(Example(image, visible, reconstruction if patches is not None else None, captions))
            first_patch += per_image
        else:
            cut.append(Example(None, None, None, captions))
    return cut


def sheet_path(run_folder: Path, step: int) -> Path:
    """Return where the sheet of `step` lies in a run folder; names sort by step."""
    return run_folder / "pictures" / f"step_{step:09d}.png"


# Lengths are pixels of the sheet, which is meant to be looked at at about half its size.
_CELL, _GAP, _MARGIN, _ROW = 256, 12, 28, 22  # _ROW: between two examples
_WIDTH = 3 * _CELL + 2 * _GAP + 2 * _MARGIN
_RULE = (228, 229, 231)
_COLUMNS = ("input", "what the encoder saw", "reconstruction")


def reconstruction_sheet(sheet: Sequence[Example], path: Path) -> None:
    """Draw one row an example into the PNG at `path`: input, what the encoder saw, reconstruction, caption.

    Folders are made as needed.
    """
    strips = [_header(), *(_example(example) for example in sheet), legend_strip(_WIDTH - 2 * _MARGIN)]
    page = Image.new("RGB", (_WIDTH, sum(strip.height + _ROW for strip in strips) + _ROW), "white")
    draw, y = ImageDraw.Draw(page), _ROW
    for strip in strips:
        page.paste(strip, (_MARGIN, y))
        y += strip.height + _ROW
        if strip is not strips[-1]:
            draw.line((_MARGIN, y - _ROW // 2, _WIDTH - _MARGIN, y - _ROW // 2), _RULE)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path, optimize=True)


def _header() -> Image.Image:
    strip = Image.new("RGB", (_WIDTH - 2 * _MARGIN, 40), "white")
    draw = ImageDraw.Draw(strip)
    for column, title in enumerate(_COLUMNS):
        draw.text((column * (_CELL + _GAP), 10), title, FAINT, font())
    return strip


def _example(example: Example) -> Image.Image:
    caption = caption_strip(example.words, _WIDTH - 2 * _MARGIN)
    if example.image is None or example.visible is None:
        return caption
    strip = Image.new("RGB", (caption.width, _CELL + _GAP + caption.height), "white")
    patch = example.image.shape[0] // example.visible.shape[0]
    views = (example.image, masked_view(example.image, example.visible, patch), example.reconstruction)
    for column, view in enumerate(views):
        if view is not None:
            strip.paste(_fitted(view), (column * (_CELL + _GAP), 0))
    strip.paste(caption, (0, _CELL + _GAP))
    return strip


def _fitted(view: np.ndarray) -> Image.Image:
    """Fit a picture into a cell: enlarged without blur, so that patches keep their edges."""
    image = Image.fromarray(view)
    if max(image.size) > _CELL:
        return image.resize((_CELL, _CELL), Image.Resampling.LANCZOS)
    times = 4 * _CELL // max(image.size)
    large = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    return large.resize((_CELL, _CELL), Image.Resampling.BOX)
