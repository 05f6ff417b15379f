"""Which tokens of a sample are hidden. In every mask here True means: visible to the encoder."""

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def keep_count(length: int, ratio: float) -> int:
    """Return how many of `length` tokens stay visible when the share `ratio` of them is hidden.

    The expression, rounding errors included, is m3ae_public's: 10 tokens at a ratio of 0.9 keep 0, not 1.
    """
    return int(length * (1.0 - ratio))


def visible_mask(length: int, ratio: float, rng: np.random.Generator) -> Mask:
    """Draw a mask over `length` tokens. Returns (length,) bool, True: visible to the encoder."""
    visible = np.zeros(length, dtype=np.bool_)
    noise = rng.random(length)
    visible[np.argsort(noise, kind="stable")[: keep_count(length, ratio)]] = True
    return visible
