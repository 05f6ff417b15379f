"""Decoding: what becomes of every kind of image file, each made for real."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from m3ae_scale.data.decode import ORIENTATION, PIXEL_LIMIT, decode_rgb, open_image
from m3ae_scale.data.sample import BadSample


def photo(width: int = 60, height: int = 40) -> Image.Image:
    """A smooth picture whose corners differ, so that every flip and turn shows, and JPEG changes it little."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 120 + 60 * np.sin(x / 9) * np.cos(y / 7)]
    return Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def difference(pixels: np.ndarray, image: Image.Image | np.ndarray) -> float:
    reference = np.asarray(image)
    assert pixels.shape == reference.shape
    return float(np.abs(pixels.astype(int) - reference.astype(int)).mean())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG"])
def test_formats(kind: str) -> None:
    data = encoded(photo(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    image = open_image(data)
    assert (image.width, image.height) == (60, 40)
    pixels, shrink = image.decode()
    assert shrink == 1 and pixels.dtype == np.uint8 and pixels.shape == (40, 60, 3)
    tolerance = {"JPEG": 3.0, "GIF": 12.0}.get(kind, 0.0)
    assert difference(pixels, photo()) <= tolerance
    assert difference(pixels, Image.open(io.BytesIO(data)).convert("RGB")) <= (0.5 if kind == "JPEG" else 0.0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encoded(photo(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = open_image(data)
    assert (image.width, image.height) == upright.size
    assert difference(image.decode()[0], upright) < 0.5


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(40)])
def test_damaged_exif_does_not_make_an_image_unusable(exif: bytes) -> None:
    image = open_image(encoded(photo(), "JPEG", exif=exif))
    assert image.orientation == 1 and image.decode()[0].shape == (40, 60, 3)


def test_cmyk_is_converted_and_adobe_inversion_undone() -> None:
    data = encoded(photo().convert("CMYK"), "JPEG", quality=95)
    assert b"Adobe" in data and simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK")
    assert difference(decode_rgb(data), photo()) < 4


def test_grey_becomes_three_equal_channels() -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        pixels = decode_rgb(encoded(photo().convert("L"), kind))
        assert np.ptp(pixels, axis=2).max() <= (3 if kind == "WEBP" else 0)
        assert difference(pixels[..., 0], photo().convert("L")) < 3
    bits = photo().convert("1")
    assert difference(decode_rgb(encoded(bits, "PNG")), bits.convert("RGB")) == 0


def test_sixteen_bits_are_scaled_to_eight() -> None:
    deep = np.arange(60 * 40, dtype=np.uint16).reshape(40, 60) * 27
    pixels = decode_rgb(encoded(Image.fromarray(deep), "PNG"))
    assert np.array_equal(pixels, np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_sixteen_bit_colour_is_scaled_to_eight() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    pixels = decode_rgb(png(7, 5, depth=16, colour=2, rows=rows))
    assert np.abs(pixels.astype(int) - deep / 257).max() <= 1


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_transparent_parts_lie_on_white() -> None:
    alpha = np.tile(np.linspace(0, 255, 60), (40, 1)).astype(np.uint8)
    image = photo()
    image.putalpha(Image.fromarray(alpha))
    share = alpha[..., None] / 255
    expected = np.asarray(photo()) * share + 255 * (1 - share)
    for kind in ("PNG", "WEBP"):
        pixels = decode_rgb(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert np.abs(pixels - expected)[:, 5:].max() <= 1.5
        assert (pixels[:, 0] == 255).all()
    grey = Image.merge("LA", [photo().convert("L"), Image.fromarray(alpha)])
    assert (decode_rgb(encoded(grey, "PNG"))[:, 0] == 255).all()


def test_palette_with_and_without_a_transparent_colour() -> None:
    palette = photo().quantize(16)
    assert difference(decode_rgb(encoded(palette, "PNG")), palette.convert("RGB")) == 0
    index = int(np.asarray(palette)[0, 0])
    pixels = decode_rgb(encoded(palette, "PNG", transparency=index))
    hidden = np.asarray(palette) == index
    assert (pixels[hidden] == 255).all()
    assert np.array_equal(pixels[~hidden], np.asarray(palette.convert("RGB"))[~hidden])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "green")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert difference(decode_rgb(data), frames[0]) == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_one_pixel_is_used(kind: str) -> None:
    assert decode_rgb(encoded(Image.new("RGB", (1, 1), "white"), kind)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("size", [(20000, 3), (3, 20000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_long_thin_image_is_used(kind: str, size: tuple[int, int]) -> None:
    assert decode_rgb(encoded(Image.new("RGB", size, "white"), kind)).shape == (size[1], size[0], 3)


def jpeg_of_size(width: int, height: int) -> bytes:
    """A real JPEG whose frame header claims another size."""
    data = bytearray(encoded(photo(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("width, height", [(20000, 20000), (65500, 65500), (8193, 8192), (12000, 9000)])
def test_too_many_pixels_are_refused_before_they_are_decoded(width: int, height: int) -> None:
    bombs = [jpeg_of_size(width, height), png(width, height, 8, 2, b""), png(width, height, 1, 0, b"")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for bomb in bombs:
            with pytest.raises(BadSample, match=f"limit of {PIXEL_LIMIT:,}") as raised:
                open_image(bomb)
            size = f"{width} x {height}" if width * height < 2**26.3 or bomb is bombs[0] else str(width * height)
            assert size in str(raised.value)


def test_the_limit_itself_is_allowed() -> None:
    assert open_image(jpeg_of_size(8192, 8192)).width == 8192


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95])
def test_truncated_files_are_bad(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(BadSample) as raised:
        decode_rgb(data[: int(len(data) * share)])
    assert "\n" not in str(raised.value) and "0x" not in str(raised.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 100, b"not an image", b"<html>404</html>", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a"],
)
def test_what_is_no_image_is_bad(data: bytes) -> None:
    with pytest.raises(BadSample):
        decode_rgb(data)


def test_floating_point_pixels_are_bad() -> None:
    with pytest.raises(BadSample, match="floating-point"):
        decode_rgb(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF"]), seed=st.integers(0, 2**32), hits=st.integers(1, 20))
def test_damaged_bytes_give_pixels_or_a_reason_and_never_another_error(kind: str, seed: int, hits: int) -> None:
    data = bytearray(encoded(photo(), kind))
    rng = np.random.default_rng(seed)
    for place in rng.integers(0, len(data), hits):
        data[place] = rng.integers(0, 256)
    try:
        pixels = decode_rgb(bytes(data))
    except BadSample as reason:
        assert str(reason)
    else:
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 90), height=st.integers(1, 90), shrink=st.sampled_from([1, 2, 4, 8]), turned=st.booleans())
def test_a_jpeg_is_decoded_at_the_asked_share_of_its_size(width: int, height: int, shrink: int, turned: bool) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6 if turned else 1
    pixels, used = open_image(encoded(photo(width, height), "JPEG", exif=exif)).decode(shrink)
    upright = (width, height) if turned else (height, width)
    assert used == shrink and pixels.shape[:2] == tuple(-(-side // shrink) for side in upright)


def test_a_smaller_decode_looks_like_the_whole() -> None:
    data = encoded(photo(160, 120), "JPEG", quality=95)
    small, _ = open_image(data).decode(4)
    assert difference(small, photo(160, 120).resize((40, 30), Image.Resampling.BOX)) < 2
