"""Histograms of what an inspection measured, with bins at round numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m3ae_scale.data.inspect.survey import Inspection

_BINS = 24  # about


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; the last bin holds all that is above its lower edge."""

    title: str
    unit: str
    edges: list[int]  # (bins + 1)
    counts: list[int]  # (bins)
    mark: int | None = None  # a length of the model, shown as a line


def histograms(found: Inspection) -> list[Histogram]:
    """Return those that the samples have something for."""
    good = [look for source in found.sources for look in source.good]
    limits = found.lengths
    captions = [look.words for look in good if look.words is not None and look.format]
    texts = [look.words for look in good if look.words is not None and not look.format]
    marks = (limits.text_length, limits.unpaired_text_length) if found.vocabulary else (None, None)
    made = [
        _histogram("Length of captions", found.text_unit, captions, marks[0]),
        _histogram("Length of texts without image", found.text_unit, texts, marks[1]),
        _histogram(
            "Shorter side of images", "pixels", [min(x.width, x.height) for x in good if x.format], limits.image_size
        ),
        _histogram("Size of image files", "KB", [round(look.image_bytes / 1000) for look in good if look.format], None),
    ]
    return [histogram for histogram in made if histogram]


def _histogram(title: str, unit: str, values: Sequence[int], mark: int | None) -> Histogram | None:
    if not values:
        return None
    low, high = min(values), float(np.quantile(values, 0.99))
    step = _round_step((high - low + 1) / _BINS)
    low = low // step * step
    bins = max(1, math.ceil((high - low + 1) / step))
    edges = [low + i * step for i in range(bins + 1)]
    counts = np.bincount(np.minimum((np.array(values) - low) // step, bins - 1), minlength=bins)
    return Histogram(title, unit, edges, counts.tolist(), mark)


def _round_step(step: float) -> int:
    """The next of 1, 2, 5, 10, 20, 50, ..."""
    power = 10 ** math.floor(math.log10(max(1.0, step)))
    return next(int(factor * power) for factor in (1, 2, 5, 10) if factor * power >= step)
