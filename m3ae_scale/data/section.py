"""From shards that a user points at to the data section of an experiment that reads them."""

import os
import re
from collections.abc import Sequence

from m3ae_scale.config.schema import DataConfig, SourceConfig
from m3ae_scale.data.remote import Cache, ShardError, fetch, is_remote
from m3ae_scale.data.sample import Kind
from m3ae_scale.data.shards import find_shards, short_names
from m3ae_scale.data.tar import Listing, NotATar, list_samples
from m3ae_scale.errors import InputError

_WHERE = "PATH"


def data_section(paths: Sequence[str], kind: Kind | None = None, tokenizer: str = "vocab.txt") -> DataConfig:
    """Return a section with one source for each folder of shards among `paths`.

    paths: what `data.sources[].shards` may hold.
    kind: None: the kind that most samples of the first readable shard of the folder have.
    Raises InputError where there is no shard.
    """
    locations = find_shards(list(paths), _WHERE)
    folders: dict[str, list[str]] = {}
    for location in locations:
        folders.setdefault(location.rpartition("/")[0], []).append(location)
    cache = Cache.of(DataConfig(sources=[SourceConfig(name="any", shards=locations)], tokenizer=tokenizer))
    sources = [
        SourceConfig(name=name, shards=_pattern(folder, shards), kind=kind or guess_kind(shards, cache))
        for name, (folder, shards) in zip(_names(list(folders)), folders.items(), strict=True)
    ]
    return DataConfig(sources=sources, tokenizer=tokenizer)


def guess_kind(locations: Sequence[str], cache: Cache) -> Kind:
    """Return the kind that most samples of the first shard that can be read have; "paired" where none can."""
    for location in locations:
        try:
            listing = list_samples(fetch(location, cache) if is_remote(location) else location)
        except (OSError, NotATar, ShardError):
            continue
        if len(listing.samples):
            return _kind_of(listing)
    return "paired"


def _kind_of(listing: Listing) -> Kind:
    image, text = (listing.samples[f"{member}_block"] > 0 for member in ("image", "text"))
    counts: dict[Kind, int] = {
        "paired": int((image & text).sum()),
        "image": int((image & ~text).sum()),
        "text": int((text & ~image).sum()),
    }
    return max(counts, key=lambda kind: counts[kind])


def _names(folders: list[str]) -> list[str]:
    """A name for each folder, by the part of its path that the others do not share."""
    if len(folders) == 1:
        parts = [os.path.basename(os.path.abspath(folders[0])) if not is_remote(folders[0]) else folders[0]]
    else:
        parts = short_names([f"{folder}/" for folder in folders])
    names: list[str] = []
    for part in parts:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", part).strip("-") or "shards"
        names.append(name if name not in names else f"{name}-{len(names)}")
    return names


def _pattern(folder: str, shards: list[str]) -> str | list[str]:
    """The shortest way to name these shards in an experiment."""
    pattern = f"{folder}/*.tar" if folder else "*.tar"
    try:
        whole = not is_remote(folder) and find_shards(pattern, _WHERE) == shards
    except InputError:
        whole = False
    return pattern if whole else shards
