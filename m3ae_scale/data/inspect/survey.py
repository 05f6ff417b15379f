"""Looks at samples spread evenly over some sources: what they are, how long, how bad, and how much packing saves.

Counts of samples come from the index and are exact. All else is measured on at most `limit` samples, so that millions
take minutes.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3ae_scale.config.schema import DataConfig, SourceConfig
from m3ae_scale.data.index import IndexedSource, index_source, saved_index
from m3ae_scale.data.inspect.look import Lengths, Look, look_at
from m3ae_scale.data.quarantine import Bad
from m3ae_scale.data.remote import Cache, ShardError, is_remote
from m3ae_scale.data.sample import Kind, RawSample
from m3ae_scale.data.shards import ShardFiles, find_shards
from m3ae_scale.data.supply import read_sample
from m3ae_scale.data.tokenizer import Tokenizer

LIMIT = 4000  # samples looked at
_SHARDS = 64  # of a source that samples are taken from; evenly spread too
_FEWEST = 100  # samples of a source, however small its share
_PICTURES = 24


@dataclass(frozen=True)
class SourceReport:
    """One source: exact counts of all of it, and the samples of it that were looked at."""

    name: str
    kind: Kind
    weight: float
    shards: int
    shards_indexed: int  # fewer than `shards` where the rest is remote and has no index
    samples: int  # in the shards indexed, as are the counts below
    images: int
    texts: int
    bytes: int
    damages: list[tuple[str, str]]  # (shard, what is wrong with it)
    looks: list[Look]

    @property
    def good(self) -> list[Look]:
        """The samples that can be used."""
        return [look for look in self.looks if not look.bad]

    @property
    def bad(self) -> list[Bad]:
        """The samples that cannot."""
        return [Bad(self.name, look.shard, look.key, look.bad) for look in self.looks if look.bad]

    def packed_tokens(self, lengths: Lengths) -> float:
        """Return the mean tokens of a sample, CLS included, when nothing is padded."""
        limit = self.text_limit(lengths)
        return _mean(1 + lengths.patches * bool(look.format) + min(look.pieces, limit) for look in self.good)

    def padded_tokens(self, lengths: Lengths) -> int:
        """Return the tokens of a sample, CLS included, when each text is padded to its length."""
        return 1 + lengths.patches * (self.kind != "text") + self.text_limit(lengths)

    def text_limit(self, lengths: Lengths) -> int:
        """Return the word pieces kept of a text of this source; 0: it has none."""
        return {"paired": lengths.text_length, "image": 0, "text": lengths.unpaired_text_length}[self.kind]


class Channels(NamedTuple):
    """Per channel of pixels in 0..1, over centre crops of the image size, each image counted alike."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Inspection:
    """What was found."""

    sources: list[SourceReport]
    lengths: Lengths
    vocabulary: bool  # whether lengths of texts are in word pieces of one
    channels: Channels | None  # None: there is no image

    @property
    def looks(self) -> list[Look]:
        """All samples that were looked at."""
        return [look for source in self.sources for look in source.looks]

    @property
    def bad(self) -> list[Bad]:
        """All samples that cannot be used."""
        return [bad for source in self.sources for bad in source.bad]

    @property
    def text_unit(self) -> str:
        """What texts are counted in."""
        return "word pieces" if self.vocabulary else "words"

    @property
    def tokens(self) -> tuple[float, float]:
        """Tokens per sample, packed and padded, with the sources in proportion to their samples."""
        weights = [source.samples for source in self.sources]
        packed = [source.packed_tokens(self.lengths) for source in self.sources]
        padded = [float(source.padded_tokens(self.lengths)) for source in self.sources]
        return float(np.average(packed, weights=weights)), float(np.average(padded, weights=weights))


def inspect(
    data: DataConfig,
    lengths: Lengths,
    tokenizer: Tokenizer | None = None,
    limit: int = LIMIT,
    by_weight: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> Inspection:
    """Look at samples of the sources of `data`.

    limit: samples to look at, spread evenly over all; of a small source at least 100.
    by_weight: a source counts by its weight in mean and std, not by its images.
    progress: called with (1, samples to look at) for each one.
    Raises InputError for what `index_source` refuses.
    """
    cache = Cache.of(data)
    indexed = [_index(source, data, cache) for source in data.sources]
    total = sum(int(source.counts.sum()) for source, _ in indexed)
    chosen = []
    for source, _ in indexed:
        samples = int(source.counts.sum())
        chosen.append(list(spread(source.counts, max(_FEWEST, limit * samples // max(1, total)))))
    shown = _shown(
        [
            (source.kind, sum(len(rows) for _, rows in shards))
            for (source, _), shards in zip(indexed, chosen, strict=True)
        ]
    )
    work = [
        (source, shard, rows) for (source, _), shards in zip(indexed, chosen, strict=True) for shard, rows in shards
    ]
    expected = sum(len(rows) for _, _, rows in work)
    looks: dict[str, list[Look]] = {source.name: [] for source, _ in indexed}
    firsts = np.cumsum([0, *(len(rows) for _, _, rows in work)]).tolist()

    def look_at_shard(number: int) -> list[Look]:
        source, shard, rows = work[number]
        found = []
        for i, raw in enumerate(_read(source, shard, rows, cache)):
            found.append(
                raw if isinstance(raw, Look) else look_at(raw, lengths, tokenizer, firsts[number] + i in shown)
            )
            if progress:
                progress(1, expected)
        return found

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # decoding lets go of the interpreter
        for (source, _, _), found in zip(work, threads.map(look_at_shard, range(len(work))), strict=True):
            looks[source.name] += found
    reports = [_report(source, shards, looks[source.name]) for source, shards in indexed]
    return Inspection(reports, lengths, tokenizer is not None, _channels(reports, by_weight))


def spread(counts: NDArray[np.int64], wanted: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (shard, rows of it): `wanted` different samples or all, evenly over at most 64 evenly spread shards."""
    filled = np.flatnonzero(counts)
    shards = filled[_evenly(len(filled), _SHARDS)]
    ends = counts[shards].cumsum()
    positions = _evenly(int(ends[-1]) if len(ends) else 0, wanted)
    which = np.searchsorted(ends, positions, side="right")
    for i, shard in enumerate(shards.tolist()):
        rows = positions[which == i] - (ends[i] - counts[shard])
        if len(rows):
            yield shard, rows.tolist()


def _evenly(total: int, wanted: int) -> NDArray[np.int64]:
    """At most `wanted` different numbers of 0..total - 1, rising."""
    wanted = min(total, wanted)
    return np.arange(wanted, dtype=np.int64) * total // max(1, wanted)


def _shown(parts: Sequence[tuple[Kind, int]]) -> set[int]:
    """Which samples, numbered over all sources, have their picture kept: as many of each source with images.

    parts: kind and samples looked at of each source.
    """
    starts = np.cumsum([0, *(count for _, count in parts)]).tolist()
    each = -(-_PICTURES // max(1, sum(kind != "text" for kind, _ in parts)))
    return {
        start + int(i)
        for start, (kind, count) in zip(starts, parts, strict=False)
        if kind != "text"
        for i in _evenly(count, each)
    }


def _index(source: SourceConfig, data: DataConfig, cache: Cache) -> tuple[IndexedSource, int]:
    """The source, listed, and how many shards it names; of remote ones without an index only some are fetched."""
    where = f"data source {source.name}"
    locations = find_shards(source.shards, where)
    total = len(locations)
    if any(map(is_remote, locations)) and total > _SHARDS and None in saved_index(locations, cache, where):
        some = [locations[i] for i in _evenly(total, _SHARDS)]
        source = source.model_copy(update={"shards": some})
    return index_source(source, data, progress=True), total


def _read(source: IndexedSource, shard: int, rows: list[int], cache: Cache) -> Iterator[RawSample | Look]:
    files, location = ShardFiles(cache), source.locations[shard]
    try:
        for row in rows:
            entry, name = source.entry(shard, row), (source.name, source.names[shard])
            try:
                yield read_sample(name, source.kind, entry, files, location, source.bytes_of(shard))
            except ShardError as error:
                yield Look(*name, entry.key, bad=str(error))
    finally:
        files.close()


def _report(source: IndexedSource, shards: int, looks: list[Look]) -> SourceReport:
    return SourceReport(
        name=source.name,
        kind=source.kind,
        weight=source.weight,
        shards=shards,
        shards_indexed=len(source.locations),
        samples=source.total("samples"),
        images=source.total("images"),
        texts=source.total("texts"),
        bytes=sum(source.bytes_of(shard) for shard in range(len(source.locations))),
        damages=source.damages(),
        looks=looks,
    )


def _channels(sources: Sequence[SourceReport], by_weight: bool) -> Channels | None:
    moments, weights = [], []
    for source in sources:
        own = [look.moments for look in source.good if look.moments is not None]
        if own:
            moments.append(np.mean(own, axis=0))
            weights.append(source.weight if by_weight else source.images)
    if not moments:
        return None
    mean, square = np.average(moments, axis=0, weights=weights)
    return Channels(tuple(mean.tolist()), tuple(np.sqrt(np.maximum(0, square - mean**2)).tolist()))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0
