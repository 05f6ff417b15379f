"""Crops, resizing and patches, against Pillow, torchvision's published rule, and the reference's patch layout."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3ae_scale.config.schema import AugmentConfig
from m3ae_scale.data.augment import (
    SHRINK_GAP,
    Box,
    centre_crop,
    crop,
    extract_patches,
    largest_shrink,
    random_crop,
    resize,
    square_view,
)
from m3ae_scale.data.decode import decode_rgb, open_image
from m3ae_scale.data.rng import stream

FIXTURES = Path(__file__).parents[2] / "fixtures" / "m3ae_public"
AUGMENT = AugmentConfig()


def photo(width: int, height: int, seed: int = 0) -> np.ndarray:
    """A picture with the spectrum of a photograph: amplitude falls with the inverse of the frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(width), np.fft.fftfreq(height)))
    frequency[0, 0] = 1
    grey = rng.standard_normal((height, width))
    planes = []
    for _ in range(3):
        noise = np.fft.fft2(grey + 0.3 * rng.standard_normal((height, width)))
        plane = np.fft.ifft2(noise / frequency**1.2).real
        planes.append(128 + 50 * (plane - plane.mean()) / plane.std())
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def pillow_resize(pixels: np.ndarray, size: int, box: Box | None = None) -> np.ndarray:
    image = Image.fromarray(pixels)
    if box is not None:
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).astype(int)


PHOTO = photo(300, 300)


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 200), height=st.integers(1, 200), size=st.integers(1, 128), seed=st.integers(0, 99))
def test_resize_is_pillows_antialiased_bicubic(width: int, height: int, size: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    for pixels, mean, worst in ((PHOTO[seed : seed + height, seed : seed + width], 0.5, 5), (noise, 1.0, 40)):
        square = resize(pixels, size)
        assert square.shape == (size, size, 3) and square.dtype == np.uint8 and square.flags.c_contiguous
        difference = np.abs(square - pillow_resize(pixels, size))
        assert difference.mean() <= mean and difference.max() <= worst


def test_resize_takes_turned_and_mirrored_views() -> None:
    pixels = photo(60, 40)
    for view in (pixels[::-1], pixels[:, ::-1], pixels.transpose(1, 0, 2)):
        assert np.array_equal(resize(view, 32), resize(view.copy(), 32))


@settings(max_examples=300, deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), seed=st.integers(0, 2**32))
def test_a_random_crop_lies_in_the_image_and_keeps_its_bounds(width: int, height: int, seed: int) -> None:
    box = random_crop(width, height, AUGMENT, stream(seed))
    assert box.left >= 0 and box.top >= 0 and box.width >= 1 and box.height >= 1
    assert box.left + box.width <= width and box.top + box.height <= height
    assert box == random_crop(width, height, AUGMENT, stream(seed))
    if min(width, height) >= 200 and 0.5 < width / height < 2:  # rounding is small, and a crop always fits
        assert 0.19 <= box.width * box.height / (width * height) <= 1.01
        assert 0.74 <= box.width / box.height <= 1.35


def test_crops_are_spread_as_torchvisions() -> None:
    """Area uniform, ratio uniform in its logarithm, corner uniform over what is left: means of 3,000 draws."""
    boxes = [random_crop(4000, 4000, AugmentConfig(crop_scale=(0.2, 0.5)), stream(i)) for i in range(3000)]
    areas = np.array([b.width * b.height / 4000**2 for b in boxes])
    ratios = np.log([b.width / b.height for b in boxes])
    assert areas.mean() == pytest.approx(0.35, abs=0.01) and areas.std() == pytest.approx(0.3 / math.sqrt(12), rel=0.05)
    assert ratios.mean() == pytest.approx(0, abs=0.02)
    assert ratios.std() == pytest.approx(2 * math.log(4 / 3) / math.sqrt(12), rel=0.05)
    assert np.mean([b.left / (4000 - b.width) for b in boxes]) == pytest.approx(0.5, abs=0.03)
    assert np.mean([b.top / (4000 - b.height) for b in boxes]) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1000, 10), Box(493, 0, 13, 10)),  # too wide: the widest allowed ratio, centred
        ((10, 1000), Box(0, 493, 10, 13)),
        ((1, 1), Box(0, 0, 1, 1)),
        ((20000, 1), Box(9999, 0, 1, 1)),
    ],
)
def test_the_fallback_is_the_largest_centred_crop_of_an_allowed_ratio(size: tuple[int, int], expected: Box) -> None:
    assert random_crop(*size, AUGMENT, stream(0)) == expected


@given(width=st.integers(1, 5000), height=st.integers(1, 5000))
def test_a_centre_crop_is_the_largest_centred_square(width: int, height: int) -> None:
    box = centre_crop(width, height)
    assert box.width == box.height == min(width, height)
    assert abs(2 * box.left + box.width - width) <= 1 and abs(2 * box.top + box.height - height) <= 1


def test_the_validation_view_is_the_shorter_side_resized_then_cropped() -> None:
    pixels = PHOTO[:100, :148]
    view = square_view(png(pixels), 50, AUGMENT, None)
    whole = np.asarray(Image.fromarray(pixels).resize((74, 50), Image.Resampling.BICUBIC)).astype(int)
    inside = np.abs(view - whole[:, 12:62])[:, 2:-2]  # at its edges the crop does not see the pixels beyond them
    assert inside.max() <= 5 and inside.mean() < 0.5


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@settings(max_examples=200, deadline=None)
@given(width=st.integers(1, 20000), height=st.integers(1, 20000), size=st.integers(8, 512))
def test_a_shrunk_decode_never_falls_below_what_the_crop_needs(width: int, height: int, size: int) -> None:
    shrink = largest_shrink(Box(0, 0, width, height), size)
    assert shrink in (1, 2, 4, 8)
    assert shrink == 1 or min(width, height) / shrink >= SHRINK_GAP * size
    assert shrink == 8 or min(width, height) / (shrink * 2) < SHRINK_GAP * size


@pytest.mark.parametrize("box", [Box(0, 0, 1203, 901), Box(101, 67, 1000, 830), Box(402, 101, 801, 800)])
def test_a_view_from_a_shrunk_decode_is_close_to_pillows_of_the_whole(box: Box) -> None:
    data = simplejpeg.encode_jpeg(photo(1203, 901), 90)
    shrink = largest_shrink(box, 96)
    assert shrink == 4
    part = crop(open_image(data).decode(shrink)[0], box, shrink)
    # The crop's edges move by up to shrink / 2 pixels of the file: compare with the crop that they move to.
    left, right = (4 * round(x / 4) for x in (box.left, box.left + box.width))
    top, bottom = (4 * round(y / 4) for y in (box.top, box.top + box.height))
    assert part.shape[:2] == ((bottom - top) // 4, (right - left) // 4)
    moved = Box(left, top, min(right, 1203) - left, min(bottom, 901) - top)
    difference = np.abs(resize(part, 96) - pillow_resize(decode_rgb(data), 96, moved))
    assert difference.mean() < 1.5 and difference.max() <= 12, (difference.mean(), difference.max())


def test_the_flip_is_a_mirror_of_the_same_crop_and_happens_half_the_time() -> None:
    data = png(photo(90, 70))
    never, always = AugmentConfig(flip=0.0), AugmentConfig(flip=1.0)
    plain, mirrored = square_view(data, 32, never, stream(1)), square_view(data, 32, always, stream(1))
    assert np.array_equal(plain[:, ::-1], mirrored) and not np.array_equal(plain, mirrored)
    small = png(photo(8, 8))
    flips = [
        np.array_equal(square_view(small, 8, AUGMENT, stream(i)), square_view(small, 8, always, stream(i)))
        for i in range(600)
    ]
    assert np.mean(flips) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("size", [(1, 1), (20000, 3), (3, 20000)])
def test_odd_sizes_give_a_square(size: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", size, (10, 200, 30)).save(buffer, "PNG")
    for rng in (None, stream(0)):
        view = square_view(buffer.getvalue(), 32, AUGMENT, rng)
        assert view.shape == (32, 32, 3) and (view == (10, 200, 30)).all()


def test_patches_are_the_references() -> None:
    with np.load(FIXTURES / "misc.npz") as reference:
        for image, patches in (("image_8x8", "extract_p4"), ("image_4x8", "extract_4x8_p4")):
            for picture, expected in zip(reference[f"patches/{image}"], reference[f"patches/{patches}"], strict=True):
                assert np.array_equal(extract_patches(picture, 4), expected)


@given(rows=st.integers(1, 4), cols=st.integers(1, 4), patch=st.integers(1, 5))
def test_a_patch_is_a_tile_of_the_image(rows: int, cols: int, patch: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (rows * patch, cols * patch, 3)).astype(np.uint8)
    patches = extract_patches(image, patch)
    for i, row in enumerate(patches):
        top, left = (i // cols) * patch, (i % cols) * patch
        assert np.array_equal(row, image[top : top + patch, left : left + patch].reshape(-1))
