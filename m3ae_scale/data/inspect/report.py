"""Tells what an inspection found: as lines for a terminal, as JSON, and as a section to paste."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from m3ae_scale.config.load import as_yaml
from m3ae_scale.config.schema import DataConfig
from m3ae_scale.data.inspect.histogram import histograms
from m3ae_scale.data.inspect.survey import Inspection, SourceReport
from m3ae_scale.data.quarantine import by_reason

EXAMPLES = 3  # of each reason


def as_json(found: Inspection) -> dict[str, Any]:
    """Return plain values for machines."""
    packed, padded = found.tokens
    return {
        "samples": sum(source.samples for source in found.sources),
        "looked_at": len(found.looks),
        "bad": len(found.bad),
        "bad_rate": share(len(found.bad), len(found.looks)),
        "lengths": asdict(found.lengths),
        "text_unit": found.text_unit,
        "tokens_per_sample": {"packed": packed, "padded": padded, "saved": 1 - packed / padded},
        "augment": {name: _rounded(values) for name, values in found.channels._asdict().items()}
        if found.channels
        else None,
        "sources": [source_values(source, found) for source in found.sources],
        "bad_reasons": [
            {
                "reason": reason,
                "count": len(group),
                "examples": [f"{bad.source}/{bad.shard}/{bad.key}" for bad in group[:EXAMPLES]],
            }
            for reason, group in by_reason(found.bad)
        ],
        "histograms": [asdict(histogram) for histogram in histograms(found)],
    }


def as_section(found: Inspection, data: DataConfig | None) -> str:
    """Return YAML ready to paste: mean and std, and the sources when `data` is given."""
    lines = ["data:"]
    if data:
        lines.append("  sources:")
        for source in data.sources:
            fields = {"name": source.name, "kind": source.kind, "shards": source.shards}
            lines.append("    - " + as_yaml(fields, flow=True))
        lines.append(f"  tokenizer: {as_yaml(data.tokenizer, flow=True)}")
    if found.channels:
        lines.append(f"  augment: # of {len([1 for look in found.looks if look.moments is not None]):,} images")
        lines += [f"    {name}: {_rounded(values)}" for name, values in found.channels._asdict().items()]
    return "\n".join(lines) + "\n"


def as_text(found: Inspection) -> Iterator[str]:
    """Yield the lines for a terminal."""
    yield lead(found)
    packed, padded = found.tokens
    for source in found.sources:
        values = source_values(source, found)
        yield ""
        size = f"{source.samples:,} samples in {_shards(source)}, {bytes_said(source.bytes)}"
        yield f"{source.name}, read as {source.kind}: {size}"
        yield f"  {source.images:,} with an image, {source.texts:,} with a text"
        if values["formats"]:
            kinds = ", ".join(f"{count:,} {name}" for name, count in values["formats"].items())
            each = bytes_said(values["image_bytes"]["median"])
            yield f"  images: {kinds}; shorter side {quantiles(values['shorter_side'])} pixels; {each} each"
        if values["words"]:
            yield f"  texts: {quantiles(values['words'])} {found.text_unit}{_remarks(values)}"
        yield f"  tokens per sample: {values['packed_tokens']:.0f} packed, {values['padded_tokens']} padded"
        if source.bad:
            yield f"  bad: {len(source.bad)} of {len(source.looks)} looked at ({values['bad_rate']:.2%})"
        for shard, damage in source.damages[:EXAMPLES]:
            yield f"  damaged shard {shard}: {damage}"
    yield ""
    saved = f"packing saves {1 - packed / padded:.0%}: {packed:.0f} tokens per sample instead of {padded:.0f}"
    yield f"{saved}, at {model_said(found)}"
    for reason, group in by_reason(found.bad):
        yield f"bad, {len(group)}: {reason}; as in {group[0].source}/{group[0].shard}/{group[0].key}"


def source_values(source: SourceReport, found: Inspection) -> dict[str, Any]:
    """Return the values of one source."""
    good, limit = source.good, source.text_limit(found.lengths)
    texts = [look for look in good if look.words is not None]
    pieces = sum(look.pieces for look in texts)
    return {
        "name": source.name,
        "kind": source.kind,
        "shards": source.shards,
        "shards_indexed": source.shards_indexed,
        "samples": source.samples,
        "images": source.images,
        "texts": source.texts,
        "bytes": source.bytes,
        "damaged_shards": [{"shard": shard, "damage": damage} for shard, damage in source.damages],
        "looked_at": len(source.looks),
        "bad": len(source.bad),
        "bad_rate": share(len(source.bad), len(source.looks)),
        "formats": dict(Counter(look.format for look in good if look.format).most_common()),
        "shorter_side": _summary([min(look.width, look.height) for look in good if look.format]),
        "image_bytes": _summary([look.image_bytes for look in good if look.format]),
        "words": _summary([look.words for look in texts if look.words is not None]),
        "blank_texts": sum(look.pieces == 0 for look in texts),
        "cut_rate": share(sum(look.pieces > limit for look in texts), len(texts)),
        "unknown_rate": share(sum(look.unknown for look in texts), pieces) if found.vocabulary else None,
        "packed_tokens": source.packed_tokens(found.lengths),
        "padded_tokens": source.padded_tokens(found.lengths),
    }


def lead(found: Inspection) -> str:
    """Say how many samples there are, and how many of them were looked at."""
    samples, looked = sum(source.samples for source in found.sources), len(found.looks)
    shards = len({(look.source, look.shard) for look in found.looks})
    how = "all of them" if looked == samples else f"{looked:,} of them, evenly spread over {shards:,} shards,"
    return f"{samples:,} samples; looked at {how} as training would decode them."


def model_said(found: Inspection) -> str:
    """Say which lengths the tokens are counted for."""
    n = found.lengths
    return (
        f"{n.patches} patches an image, captions up to {n.text_length} and texts up to {n.unpaired_text_length} word "
        f"pieces{'' if found.vocabulary else ', estimated from bytes'}"
    )


def _shards(source: SourceReport) -> str:
    if source.shards_indexed == source.shards:
        return f"{source.shards:,} shard{'s' * (source.shards != 1)}"
    return f"{source.shards_indexed:,} of {source.shards:,} shards (the rest is remote and has no index)"


def _remarks(values: dict[str, Any]) -> str:
    parts = []
    if values["cut_rate"]:
        parts.append(f"{values['cut_rate']:.1%} longer than the model keeps")
    if values["blank_texts"]:
        parts.append(f"{values['blank_texts']} blank")
    if values["unknown_rate"]:
        parts.append(f"{values['unknown_rate']:.2%} of the pieces [UNK]")
    return "".join(f"; {part}" for part in parts)


def _summary(values: Sequence[int]) -> dict[str, int] | None:
    if not values:
        return None
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95]).round().astype(int).tolist()
    return {"least": min(values), "p5": low, "median": median, "p95": high, "most": max(values)}


def quantiles(summary: dict[str, int] | None) -> str:
    """Write the median (5th to 95th percentile)."""
    if summary is None:
        return "none"
    return f"{summary['median']:,} ({summary['p5']:,} to {summary['p95']:,})"


def share(part: int, whole: int) -> float:
    """Return part / whole, 0 of nothing."""
    return part / whole if whole else 0.0


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]


def bytes_said(count: float) -> str:
    """Write a number of bytes with its unit."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
