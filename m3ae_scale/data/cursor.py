"""Where a run stands in its data: a few numbers, and what the order that they count in is made of."""

from collections.abc import Mapping, Sequence
from typing import Any

from m3ae_scale.config.schema import DataConfig
from m3ae_scale.data.index import IndexedSource
from m3ae_scale.errors import InputError

Cursor = dict[str, Any]  # JSON: {"step", "position", "order": {...}}

_ADVICE = "a run resumes on the data that it began with: restore that, or start a new run"


def order_identity(sources: Sequence[IndexedSource], data: DataConfig, seed: int) -> dict[str, Any]:
    """Return what the global order is a function of, as JSON."""
    return {
        "seed": seed,
        "lanes": data.lanes,
        "shuffle_block": data.shuffle_block,
        "sources": [
            {
                "name": source.name,
                "weight": source.weight,
                "shards": len(source.locations),
                "samples": int(source.counts.sum()),
                "digest": source.digest(),
            }
            for source in sources
        ],
    }


def check_order(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a saved position counts in the order of today.

    Raises InputError that says what differs.
    """
    for key, name in (("seed", "seed"), ("lanes", "data.lanes"), ("shuffle_block", "data.shuffle_block")):
        if saved[key] != now[key]:
            raise InputError(f"{name}: found {now[key]}, the checkpoint has {saved[key]}; {_ADVICE}")
    names, names_now = ([source["name"] for source in order["sources"]] for order in (saved, now))
    if names != names_now:
        raise InputError(
            f"data.sources: found {', '.join(names_now)}, the checkpoint has {', '.join(names)}; {_ADVICE}"
        )
    for then, today in zip(saved["sources"], now["sources"], strict=True):
        where = f"data source {today['name']}"
        for key in ("weight", "shards", "samples"):
            if then[key] != today[key]:
                raise InputError(f"{where}: {key}: found {today[key]}, the checkpoint has {then[key]}; {_ADVICE}")
        if then["digest"] != today["digest"]:
            raise InputError(f"{where}: its shards have other names or other sample counts than before; {_ADVICE}")
