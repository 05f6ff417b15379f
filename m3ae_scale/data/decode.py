"""Turns the bytes of an image file into upright RGB pixels, or says why it cannot.

JPEG goes through simplejpeg (libjpeg-turbo), which can decode straight to a half, a quarter or an eighth of the
size; every other format, and CMYK JPEG, goes through Pillow. benchmarks/decoders.py measures the choice.
"""

import io
import re
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from m3ae_scale.data.sample import BadSample

Pixels = NDArray[np.uint8]

# 67 million: a 64-megapixel photograph passes, 20,000 x 20,000 does not. It lies below Pillow's own limit.
PIXEL_LIMIT = 2**26
# Pillow would try more than these, some with the help of outside programs (EPS).
PILLOW_FORMATS = ("PNG", "WEBP", "GIF", "JPEG", "BMP", "TIFF")
ORIENTATION = 0x0112  # the EXIF tag: 1 is upright, 2 to 8 are flips and turns
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I")


@dataclass(frozen=True)
class Encoded:
    """An image file whose size is known, and whose pixels, of a JPEG, are not decoded yet."""

    width: int  # pixels, once upright
    height: int
    orientation: int  # EXIF, 1 to 8
    data: bytes
    pillow: Image.Image | None  # already decoded by Pillow; None: simplejpeg will decode it

    def decode(self, shrink: int = 1) -> tuple[Pixels, int]:
        """Decode to 1/`shrink` of the size: 1, 2, 4 or 8; formats other than JPEG ignore it.

        Returns (height, width, 3) RGB, upright, and the shrink used. Raises BadSample for damaged data.
        """
        if self.pillow is not None:
            return _upright(_to_rgb(self.pillow), self.orientation), 1
        width, height = (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)
        try:
            # Of the sizes that libjpeg offers this asks for the smallest that is not below 1/shrink.
            pixels = simplejpeg.decode_jpeg(self.data, min_height=-(-height // shrink), min_width=-(-width // shrink))
        except ValueError as error:
            # libjpeg would go on after most of these, with grey or garbage for the rest of the image.
            raise BadSample(f"damaged JPEG: {error}") from None
        return _upright(pixels, self.orientation), shrink


def open_image(data: bytes) -> Encoded:
    """Read the header of an image file, and of other formats than JPEG the pixels too.

    Raises BadSample for what is no image or is damaged, and, before a pixel is decoded, for more than PIXEL_LIMIT.
    """
    if not data:
        raise BadSample("image of zero bytes")
    if not simplejpeg.is_jpeg(data):
        return _open_pillow(data)
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # damaged, or sampled in a way that simplejpeg has no name for
        return _open_pillow(data)
    _check_size(width, height)
    if colours in ("CMYK", "YCCK"):
        return _open_pillow(data)
    orientation = _jpeg_orientation(data) if b"Exif\0\0" in data else 1
    width, height = (height, width) if orientation >= 5 else (width, height)
    return Encoded(width, height, orientation, data, None)


def decode_rgb(data: bytes) -> Pixels:
    """Decode an image file at its full size: (height, width, 3) RGB, upright. Raises BadSample."""
    return open_image(data).decode()[0]


def _open_pillow(data: bytes) -> Encoded:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data), formats=PILLOW_FORMATS)
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise BadSample(f"image past the limit of {PIXEL_LIMIT:,} pixels: {error}") from None
        except Exception as error:  # Pillow's plugins raise anything on damaged headers
            raise BadSample(f"not an image that can be read: {_reason(error)}") from None
        _check_size(*image.size)
        try:
            image.load()  # now: PNG may tell the orientation after the pixels, TIFF turns itself upright
        except Exception as error:  # Pillow's decoders raise anything on damaged data
            raise BadSample(f"damaged image: {_reason(error)}") from None
        orientation = _orientation(image)
    width, height = image.size[::-1] if orientation >= 5 else image.size
    return Encoded(width, height, orientation, data, image)


def _check_size(width: int, height: int) -> None:
    if width * height > PIXEL_LIMIT:
        raise BadSample(f"image of {width} x {height} pixels, past the limit of {PIXEL_LIMIT:,}")


def _jpeg_orientation(data: bytes) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata
        try:
            return _orientation(Image.open(io.BytesIO(data), formats=("JPEG",)))
        except Exception:  # what simplejpeg can decode is used, whatever Pillow makes of its metadata
            return 1


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF does not make the pixels unusable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Pixels:
    """A loaded image as (height, width, 3) RGB; transparent parts lie on white."""
    if image.mode in DEEP_GREY:
        grey = np.asarray(image).clip(0, 65535) >> 8
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise BadSample("image of floating-point pixels, whose white is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the EXIF orientation, as a view."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _reason(error: Exception) -> str:
    # "cannot identify image file <_io.BytesIO object at 0x7f...>" would differ from run to run
    return re.sub(r" <_io.BytesIO[^>]*>", "", str(error)) or type(error).__name__
