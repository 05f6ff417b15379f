"""From an image file to a square of pixels: MAE's random resized crop and flip, and the patches of the square.

Pixels stay uint8 on the host; the model normalises them on its device.
"""

import math
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from m3ae_scale.config.schema import AugmentConfig
from m3ae_scale.data.decode import Encoded, Pixels, open_image

# A JPEG is decoded at 1/2, 1/4 or 1/8 of its size only where the crop keeps this many pixels per pixel of the
# square, on both sides. At 2 the result is within 4 of 255 of Pillow's from the full decode, 0.3 on average; at 1
# it would be up to 40% faster on larger files and three times as far: 12 of 255, 0.9 (benchmarks/decoders.py).
SHRINK_GAP = 2


Number = TypeVar("Number", np.uint8, np.float32)


class Box(NamedTuple):
    """A crop, in pixels of the upright image."""

    left: int
    top: int
    width: int
    height: int


def random_crop(width: int, height: int, augment: AugmentConfig, rng: np.random.Generator) -> Box:
    """Draw a crop of `crop_scale` of the area and a `crop_ratio` (width / height) that is uniform in its logarithm.

    After ten draws that do not fit: the largest centred crop of an allowed ratio, as in torchvision.
    """
    low, high = (math.log(ratio) for ratio in augment.crop_ratio)
    smallest, largest = augment.crop_scale
    for _ in range(10):
        area = width * height * (smallest + (largest - smallest) * rng.random())
        ratio = math.exp(low + (high - low) * rng.random())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(rng.random() * (width - w + 1)), int(rng.random() * (height - h + 1)), w, h)
    narrowest, widest = augment.crop_ratio
    w = min(width, max(1, round(height * widest)))
    h = min(height, max(1, round(width / narrowest)))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def centre_crop(width: int, height: int) -> Box:
    """Return the largest centred square: cropping it, then resizing, is resizing the shorter side, then cropping."""
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side, side)


def square_view(data: bytes, size: int, augment: AugmentConfig, rng: np.random.Generator | None) -> Pixels:
    """Decode an image file, crop it, resize the crop to (size, size, 3) uint8 and perhaps flip it.

    rng: draws crop and flip; None takes the centre crop, unflipped, as validation does.
    Raises BadSample for an image that cannot be used.
    """
    return view_of(open_image(data), size, augment, rng)


def view_of(image: Encoded, size: int, augment: AugmentConfig, rng: np.random.Generator | None) -> Pixels:
    """Do what `square_view` does with an image whose header is read already."""
    box = (
        centre_crop(image.width, image.height) if rng is None else random_crop(image.width, image.height, augment, rng)
    )
    flip = rng is not None and rng.random() < augment.flip
    pixels, shrink = image.decode(largest_shrink(box, size))
    square = resize(crop(pixels, box, shrink), size)
    # torch turns a row of pixels around many times as fast as numpy copies one with a negative stride.
    return torch.from_numpy(square).flip(1).numpy() if flip else square


def largest_shrink(box: Box, size: int) -> int:
    """Return the largest of 8, 4, 2, 1 that leaves the crop SHRINK_GAP times the pixels it is resized to."""
    return next((n for n in (8, 4, 2) if min(box.width, box.height) >= SHRINK_GAP * size * n), 1)


def crop(pixels: Pixels, box: Box, shrink: int) -> Pixels:
    """Return the part of `pixels`, decoded at 1/`shrink`, that `box` names; its edges move to the nearest pixel."""
    left, right = round(box.left / shrink), round((box.left + box.width) / shrink)
    top, bottom = round(box.top / shrink), round((box.top + box.height) / shrink)
    return pixels[top:bottom, left:right]


def resize(pixels: Pixels, size: int) -> Pixels:
    """Resize (height, width, 3) to (size, size, 3) with an antialiased bicubic: Pillow's, to within 5 of 255.

    That is the largest difference on photographs, on average it is 0.3 or less; torch is several times as fast
    (benchmarks/decoders.py).
    """
    # torch takes neither the negative strides of a turned image nor the read-only memory of Pillow's.
    image = torch.from_numpy(np.require(pixels, requirements=("C", "W"))).permute(2, 0, 1)[None]
    square = torch.nn.functional.interpolate(image, (size, size), mode="bicubic", antialias=True)
    return torch.stack(square[0].unbind(), dim=-1).numpy()  # three times as fast as a transposing copy


def extract_patches(image: NDArray[Number], patch: int) -> NDArray[Number]:
    """Cut (H, W, 3) into (patches, patch * patch * 3): patches row-major, inside a patch (row, col, channel)."""
    rows, cols = image.shape[0] // patch, image.shape[1] // patch
    grid = image.reshape(rows, patch, cols, patch, 3)
    patches: NDArray[Number] = grid.swapaxes(1, 2).reshape(rows * cols, patch * patch * 3)
    return patches
