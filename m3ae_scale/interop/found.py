"""Parameters read from somebody's file: under our names, in our layout, with what the file tells about them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from m3ae_scale.model.pixels import Channels

IMAGENET: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std of pixels in 0..1
CC12M: tuple[Channels, Channels] = ((0.5762, 0.5503, 0.5213), (0.3207, 0.3169, 0.3307))


@dataclass(frozen=True)
class Found:
    """What a file held."""

    path: Path
    kind: str  # who writes such files
    values: Mapping[str, np.ndarray]  # float32, possibly views of a mapped file
    model: dict[str, Any]  # keys of the section `model`, as far as the file tells
    unused: tuple[str, ...] = ()  # its names without a counterpart here
    step: int | None = None
    pixels: tuple[Channels, Channels] | None = None  # mean and std of its pixels; None: it does not tell
    channel_pixels: bool = True  # its image head predicts pixels normalised per channel, not per patch
    grid: int | None = None  # patches along a side, where the file holds positions for that grid alone
    vocabulary: Path | None = None  # the word pieces it was trained with
    experiment: dict[str, Any] | None = None  # of a run of ours
    notes: tuple[str, ...] = field(default=())


def blocks_in(paths: Iterable[str], pattern: str) -> int:
    """Count the transformer blocks: how many numbers `pattern` (one group) finds in `paths`."""
    return len({match[1] for match in map(partial(re.match, pattern), paths) if match})


def published_heads(dim: int) -> int | None:
    """Return how many attention heads every published tower of this width has; None where none is published."""
    return {384: 6, 512: 16, 768: 12, 1024: 16, 1280: 16}.get(dim)


def with_pixels(found: Found, mean: Channels, std: Channels) -> Found:
    """Return `found` such that it computes the same from pixels normalised by `mean` and `std` as from its own.

    Its pixels are y = (x - m) / s, ours z = (x - mean) / std, so y = a z + c with a = std / s and c = (mean - m) / s.
    The patch embedding takes a and c up, and the image head gives (y - c) / a; in float64.
    """
    if found.pixels is None or found.pixels == (mean, std):
        return found
    theirs, spread = (np.array(part, np.float64) for part in found.pixels)
    a, c = np.array(std) / spread, (np.array(mean) - theirs) / spread
    changed: dict[str, np.ndarray] = {}
    if "encoder.embed.image.weight" in found.values:
        weight = found.values["encoder.embed.image.weight"].astype(np.float64)
        a_row, c_row = np.tile(a, weight.shape[1] // 3), np.tile(c, weight.shape[1] // 3)
        changed["encoder.embed.image.weight"] = weight * a_row
        changed["encoder.embed.image.bias"] = found.values["encoder.embed.image.bias"] + weight @ c_row
    predicts_pixels = found.channel_pixels and not found.model.get("image_codebook")
    if "image_head.output.weight" in found.values and predicts_pixels:
        weight = found.values["image_head.output.weight"].astype(np.float64)
        a_row, c_row = np.tile(a, weight.shape[0] // 3), np.tile(c, weight.shape[0] // 3)
        changed["image_head.output.weight"] = weight / a_row[:, None]
        changed["image_head.output.bias"] = (found.values["image_head.output.bias"] - c_row) / a_row
    values = {**found.values, **{name: value.astype(np.float32) for name, value in changed.items()}}
    note = "pixel normalisation moved into the patch embedding" + (
        " and the image head" if "image_head.output.weight" in changed else ""
    )
    return replace(found, values=values, pixels=(mean, std), notes=(*found.notes, note))


def listed(names: Iterable[str]) -> str:
    """List names in one line, those of all blocks as one: `blocks.*.norm1.weight`."""
    return ", ".join(dict.fromkeys(re.sub(r"(?<=blocks\.)\d+|(?<=Block_)\d+", "*", name) for name in names)) or "none"
