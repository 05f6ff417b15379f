"""Supplies the prepared sample of a position; a bad one is named, and another stands in for it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from m3ae_scale.data.index import Entry, IndexedSource
from m3ae_scale.data.order import Integers, Order, Places
from m3ae_scale.data.prepare import Recipe, prepare
from m3ae_scale.data.quarantine import Bad
from m3ae_scale.data.remote import Cache, ShardError, is_remote
from m3ae_scale.data.sample import BadSample, Kind, RawSample, Sample
from m3ae_scale.data.shards import ShardFiles
from m3ae_scale.errors import InputError

MOST_ATTEMPTS = 64  # substitutes tried for one position before the source counts as unusable
BYTES_PER_WORD = 5  # of English text, a word piece and its space; an estimate, for dealing by tokens only


@dataclass
class Supplied:
    """What became of some positions."""

    samples: list[Sample] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    tried: Counter[str] = field(default_factory=Counter)  # by source: samples read, bad ones included


class Supply:
    """The samples of some sources in their order, ready for packing."""

    def __init__(self, sources: Sequence[IndexedSource], order: Order, recipe: Recipe, cache: Cache, train: bool):
        self.sources, self.order, self.recipe, self.train = list(sources), order, recipe, train
        self.any_remote = any(is_remote(location) for s in self.sources for location in s.locations)
        self._files = ShardFiles(cache)

    def take(self, positions: Integers, epoch: int | None, global_step: int) -> Supplied:
        """Return the samples at `positions` (n,), bad ones replaced by the order's substitutes.

        epoch: None is the epoch of each sample's source; a number fixes masks.
        Raises InputError when a position finds no usable sample.
        """
        supplied = Supplied()
        places = self.order.locate(positions)
        for i, position in enumerate(positions.tolist()):
            for attempt in range(MOST_ATTEMPTS + 1):
                place, j = (self.order.substitute(position, attempt), 0) if attempt else (places, i)
                source = self.sources[place.source[j]]
                supplied.tried[source.name] += 1
                try:
                    raw = self._read(place, j)
                    used_epoch = int(place.epoch[j]) if epoch is None else epoch
                    supplied.samples.append(prepare(raw, self.recipe, used_epoch, self.train, global_step))
                    break
                except (BadSample, ShardError) as error:
                    supplied.bad.append(self._name(place, j, str(error)))
            else:
                last = supplied.bad[-1]
                raise InputError(
                    f"data source {last.source}: {MOST_ATTEMPTS + 1} samples in a row cannot be used, the last "
                    f"{last.shard}/{last.key}: {last.reason}; look at its shards with `m3ae-scale data verify`"
                )
        return supplied

    def fetch_ahead(self, positions: Integers) -> None:
        """Begin to bring the remote shards of these positions."""
        places = self.order.locate(positions)
        pairs = sorted(set(zip(places.source.tolist(), places.shard.tolist(), strict=True)))
        self._files.fetch_ahead(self.sources[source].locations[shard] for source, shard in pairs)

    def tokens(self, positions: Integers) -> Integers:
        """Return (n,): about how many tokens each sample has; exact in patches, by text length in words."""
        places = self.order.locate(positions)
        counts = np.empty(len(positions), dtype=np.int64)
        for source, shard in sorted(set(zip(places.source.tolist(), places.shard.tolist(), strict=True))):
            here = (places.source == source) & (places.shard == shard)
            rows = self.sources[source].rows(shard)[places.index[here]]
            counts[here] = estimate_tokens(rows, self.sources[source].kind, self.recipe)
        return counts

    def close(self) -> None:
        """Close the shards."""
        self._files.close()

    def _read(self, place: Places, j: int) -> RawSample:
        source, shard = self.sources[place.source[j]], int(place.shard[j])
        entry, name = source.entry(shard, int(place.index[j])), (source.name, source.names[shard])
        return read_sample(name, source.kind, entry, self._files, source.locations[shard], source.bytes_of(shard))

    def _name(self, place: Places, j: int, reason: str) -> Bad:
        source, shard, index = self.sources[place.source[j]], int(place.shard[j]), int(place.index[j])
        return Bad(source.name, source.names[shard], source.entry(shard, index).key, reason)


def read_sample(
    name: tuple[str, str], kind: Kind, entry: Entry, files: ShardFiles, location: str, shard_bytes: int
) -> RawSample:
    """Read the members of a sample that its kind promises; another that is there is b"".

    name: of its source and its shard. shard_bytes: of the shard when it was listed.
    Raises ShardError.
    """

    def member(span: tuple[int, int] | None, wanted: bool) -> bytes | None:
        if span is None or not wanted:  # b"": it is there, and nothing of it would enter a Batch
            return None if span is None else b""
        return files.read(location, *span, shard_bytes=shard_bytes)

    return RawSample(
        source=name[0],
        shard=name[1],
        key=entry.key,
        kind=kind,
        image=member(entry.image, kind != "text"),
        text=member(entry.text, kind != "image"),
        meta=member(entry.meta, False),
    )


def estimate_tokens(rows: np.ndarray, kind: str, recipe: Recipe) -> Integers:
    """Return (n,) tokens, CLS included, of samples whose rows of the index are `rows` (n,) of dtype SAMPLE."""
    image = (rows["image_block"] > 0) & (kind != "text")
    text = (rows["text_block"] > 0) & (kind != "image")
    words = np.minimum(
        1 + rows["text_bytes"].astype(np.int64) // BYTES_PER_WORD,
        np.where(image, recipe.text_length, recipe.unpaired_text_length),
    )
    patches = (recipe.image_size // recipe.patch) ** 2
    return 1 + image * patches + text * words
