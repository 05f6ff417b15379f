"""Writes what an inspection found as one HTML page: pictures with captions, histograms, bad samples, what to paste."""

import base64
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from m3ae_scale.data.inspect.histogram import Histogram, histograms
from m3ae_scale.data.inspect.report import EXAMPLES, bytes_said, lead, model_said, quantiles, share, source_values
from m3ae_scale.data.inspect.survey import Inspection, SourceReport
from m3ae_scale.data.quarantine import by_reason
from m3ae_scale.errors import InputError

_COLUMNS = ("source", "kind", "samples", "shards", "size", "images", "shorter side", "texts", "bad", "tokens", "padded")


def write_page(found: Inspection, path: str | Path, title: str, section: str) -> None:
    """Write one HTML file without external references. Raises InputError where it cannot be written."""
    environment = Environment(
        loader=PackageLoader("m3ae_scale.data", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    packed, padded = found.tokens
    page = environment.get_template("inspect.html.j2").render(
        title=title,
        lead=lead(found),
        tiles=_tiles(found),
        section=section,
        columns=_COLUMNS,
        rows=[_row(source, found) for source in found.sources],
        packing=f"Packing saves {1 - packed / padded:.0%} of the tokens: a sample has {packed:.0f} on average, and "
        f"{padded:.0f} with every text padded to its full length ({model_said(found)}).",
        histograms=[_bars(histogram) for histogram in histograms(found)],
        pictures=_pictures(found),
        texts=[
            (look.source, _shortened(look.caption, 400)) for look in found.looks if look.caption and not look.format
        ][:6],
        bad=[
            (len(group), reason, [f"{bad.source}/{bad.shard}/{bad.key}" for bad in group[:EXAMPLES]])
            for reason, group in by_reason(found.bad)
        ],
        damages=[(source.name, *damage) for source in found.sources for damage in source.damages],
        unit=found.text_unit,
        estimated=not found.vocabulary,
    )
    try:
        Path(path).write_text(page, encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot write the page ({error.strerror}); name another file with --page") from None


def _bars(histogram: Histogram, width: int = 400, height: int = 130) -> dict[str, Any]:
    """What the template draws: bars, ticks and the mark, in units of the picture."""
    edges, counts = histogram.edges, histogram.counts
    first, last, most = edges[0], edges[-1], max(counts)
    slot = width / len(counts)
    ticks = sorted({0, len(counts) // 2, len(counts)})
    mark = histogram.mark
    return {
        "title": histogram.title,
        "unit": histogram.unit,
        "bars": [
            (i * slot, height - height * c / most, slot * 0.86, height * c / most, f"{_span(histogram, i)}: {c:,}")
            for i, c in enumerate(counts)
        ],
        "ticks": [(i * slot, f"{edges[i]:,}") for i in ticks],
        "mark": (width * (mark - first) / (last - first), mark) if mark is not None and first < mark < last else None,
    }


def _span(histogram: Histogram, i: int) -> str:
    low, high = histogram.edges[i], histogram.edges[i + 1] - 1
    if i == len(histogram.counts) - 1:
        return f"{low:,} and more {histogram.unit}"
    return f"{low:,} {histogram.unit}" if low == high else f"{low:,} to {high:,} {histogram.unit}"


def _row(source: SourceReport, found: Inspection) -> list[str]:
    values = source_values(source, found)
    return [
        source.name,
        source.kind,
        f"{source.samples:,}",
        f"{source.shards:,}",
        bytes_said(source.bytes),
        ", ".join(f"{count:,} {name}" for name, count in values["formats"].items()) or "none",
        quantiles(values["shorter_side"]),
        quantiles(values["words"]),
        f"{values['bad_rate']:.2%}",
        f"{values['packed_tokens']:.0f}",
        str(values["padded_tokens"]),
    ]


def _tiles(found: Inspection) -> list[tuple[str, str, str]]:
    packed, padded = found.tokens
    samples, looked = sum(source.samples for source in found.sources), len(found.looks)
    return [
        ("samples", f"{samples:,}", f"{looked:,} looked at"),
        ("shards", f"{sum(s.shards for s in found.sources):,}", bytes_said(sum(s.bytes for s in found.sources))),
        ("bad samples", f"{share(len(found.bad), looked):.2%}", f"{len(found.bad):,} of those looked at"),
        ("tokens per sample", f"{packed:.0f}", "estimated from bytes" if not found.vocabulary else "with CLS"),
        ("packing saves", f"{1 - packed / padded:.0%}", f"of {padded:.0f} padded tokens"),
    ]


def _pictures(found: Inspection) -> list[tuple[str, str, str, str]]:
    return [
        (
            "data:image/jpeg;base64," + base64.b64encode(look.picture).decode(),
            _shortened(look.caption, 160),
            f"{look.width} x {look.height} {look.format}",
            f"{look.source}/{look.shard}/{look.key}",
        )
        for look in found.looks
        if look.picture
    ]


def _shortened(text: str, most: int) -> str:
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) <= most else text[: most - 3] + "..."
