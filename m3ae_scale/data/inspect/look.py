"""Looks at one sample: what its image and its text are, or why training could not use it."""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3ae_scale.config.schema import AugmentConfig
from m3ae_scale.data.augment import view_of
from m3ae_scale.data.decode import Pixels, open_image
from m3ae_scale.data.prepare import promised, read_text
from m3ae_scale.data.sample import BadSample, RawSample
from m3ae_scale.data.supply import BYTES_PER_WORD
from m3ae_scale.data.tokenizer import Tokenizer

_LONGEST = 4096  # word pieces counted of a text
_PICTURE_SIDE = 224  # pixels


@dataclass(frozen=True)
class Lengths:
    """What a model would take of a sample; the defaults are the paper's."""

    image_size: int = 256  # pixels, square
    patch: int = 16  # pixels, square
    text_length: int = 64  # word pieces kept of a caption
    unpaired_text_length: int = 256  # word pieces kept of a text without image

    @property
    def patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True)
class Look:
    """What one sample turned out to be."""

    source: str
    shard: str
    key: str
    bad: str = ""  # why it cannot be used; then the rest says nothing
    format: str = ""  # of the image; "": it has none
    width: int = 0  # pixels, upright
    height: int = 0
    image_bytes: int = 0
    moments: NDArray[np.float64] | None = None  # (2, 3): mean of x and of x * x per channel, x in 0..1
    words: int | None = None  # word pieces, or words where there is no vocabulary; None: it has no text
    pieces: int = 0  # word pieces; estimated from the bytes where there is no vocabulary
    unknown: int = 0  # word pieces that are [UNK]
    caption: str = ""
    picture: bytes = field(default=b"", repr=False)  # a small JPEG, of the samples that are shown


def look_at(raw: RawSample, lengths: Lengths, tokenizer: Tokenizer | None, picture: bool) -> Look:
    """Decode one sample as training would; picture: keep a small one."""
    try:
        image, text = promised(raw)
        fields = _look_at_text(text, tokenizer) if text is not None else {}
        if image is not None:
            fields |= _look_at_image(image, lengths.image_size, picture)
        elif not fields["pieces"]:
            raise BadSample("the text is blank, or holds nothing that makes a word piece")
    except BadSample as error:
        return Look(raw.source, raw.shard, raw.key, bad=str(error))
    return Look(raw.source, raw.shard, raw.key, **fields)


def _look_at_text(text: bytes, tokenizer: Tokenizer | None) -> dict[str, Any]:
    caption = read_text(text)
    if tokenizer is None:
        words = len(caption.split())
        return {"words": words, "pieces": 1 + len(text) // BYTES_PER_WORD if words else 0, "caption": caption}
    ids = tokenizer.encode(caption, _LONGEST)
    unknown = int((ids == tokenizer.pipeline.token_to_id("[UNK]")).sum())
    return {"words": len(ids), "pieces": len(ids), "unknown": unknown, "caption": caption}


def _look_at_image(image: bytes, size: int, picture: bool) -> dict[str, Any]:
    opened = open_image(image)
    square = view_of(opened, size, AugmentConfig(), rng=None)
    pixels = square.reshape(-1, 3)
    return {
        "format": (opened.pillow.format or "?") if opened.pillow else "JPEG",
        "width": opened.width,
        "height": opened.height,
        "image_bytes": len(image),
        "moments": np.stack([pixels.mean(0) / 255, np.square(pixels, dtype=np.int32).mean(0) / 255**2]),
        "picture": _small(opened.decode()[0]) if picture else b"",
    }


def _small(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.LANCZOS)
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
