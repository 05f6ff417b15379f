"""Reads every tar and decodes every sample of some sources, in parallel, and says what training could not use.

What is judged is what training would do with the sample: decode.py and prepare.py decide. A record of finished shards,
JSON lines, lets a second call go on where the first one ended.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from m3ae_scale.config.schema import DataConfig, SourceConfig
from m3ae_scale.data.decode import decode_rgb
from m3ae_scale.data.index import saved_index
from m3ae_scale.data.index_file import IndexFile, entry_of
from m3ae_scale.data.prepare import promised, read_text
from m3ae_scale.data.quarantine import Bad, by_reason
from m3ae_scale.data.remote import Cache, ShardError, is_remote
from m3ae_scale.data.sample import BadSample, Kind, RawSample
from m3ae_scale.data.shards import ShardFiles, find_shards, short_names
from m3ae_scale.data.supply import read_sample
from m3ae_scale.data.tar import Listing, NotATar, list_samples
from m3ae_scale.errors import InputError

_FAILURES = 20  # told on a terminal


@dataclass(frozen=True)
class Verdict:
    """What is wrong with one shard."""

    source: str
    kind: Kind
    shard: str  # its short name
    location: str
    bytes: int = 0
    mtime_ns: int = 0  # time of change; 0: remote
    samples: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)  # (key, reason) of each sample that cannot be used
    damage: str = ""  # of the shard itself: it cannot be read, or not to its end
    index: str = ""  # how a saved index contradicts the shard, though it seems up to date
    stale: bool = False  # the shard changed after it was listed; the next start lists it again

    @property
    def bad_samples(self) -> list[Bad]:
        """The bad samples as the quarantine names them."""
        return [Bad(self.source, self.shard, key, reason) for key, reason in self.bad]


@dataclass(frozen=True)
class Verification:
    """What is wrong with some sources."""

    verdicts: list[Verdict]  # one a shard
    limit: float  # share of a source that may be bad
    known: int  # shards that an earlier call had verified

    @property
    def samples(self) -> int:
        """Samples read, bad ones included."""
        return sum(verdict.samples for verdict in self.verdicts)

    @property
    def bad(self) -> list[Bad]:
        """Every sample that cannot be used."""
        return [bad for verdict in self.verdicts for bad in verdict.bad_samples]

    def failures(self) -> list[str]:
        """Return why training would not start, would stop, or would silently miss samples; none: all is well."""
        found = [f"{v.location}: {v.damage}" for v in self.verdicts if v.damage]
        found += [f"{v.location}: {v.index}" for v in self.verdicts if v.index]
        for source in dict.fromkeys(verdict.source for verdict in self.verdicts):
            own = [verdict for verdict in self.verdicts if verdict.source == source]
            samples, bad = sum(v.samples for v in own), sum(len(v.bad) for v in own)
            if bad > self.limit * samples:
                found.append(
                    f"data source {source}: {bad} of {samples} samples cannot be used, more than the limit of "
                    f"{self.limit:g}"
                )
        return found


def verify(
    data: DataConfig,
    record: str | Path,
    limit: float | None = None,
    processes: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> Verification:
    """Verify the sources and the validation sources of `data`.

    record: JSON lines of finished shards; shards in it that have not changed are not read again.
    limit: share of a source that may be bad; None: data.bad_sample_limit.
    processes: None: one per core.
    progress: called with the number of shards dealt with since the last call.
    Raises InputError where a source names no shard, or the record cannot be written.
    """
    record, cache = Path(record), Cache.of(data)
    progress = progress or (lambda count: None)
    known = _read_record(record)
    verdicts: list[Verdict] = []
    tasks: list[_Task] = []
    for source in (*data.sources, *data.validation):
        for task in _tasks(source, cache):
            earlier = known.get((task.verdict.source, task.verdict.kind, task.verdict.location))
            if earlier and (earlier.bytes, earlier.mtime_ns) == (task.verdict.bytes, task.verdict.mtime_ns):
                verdicts.append(replace(earlier, stale=task.verdict.stale))
                progress(1)
            else:
                tasks.append(task)
    already = len(verdicts)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        with record.open("a") as file:
            for verdict in _each(tasks, processes or len(os.sched_getaffinity(0))):
                file.write(json.dumps(asdict(verdict)) + "\n")
                file.flush()
                verdicts.append(verdict)
                progress(1)
    except OSError as error:
        raise InputError(f"{record}: cannot write the record ({error.strerror}); name another with --record") from None
    verdicts.sort(key=lambda verdict: (verdict.source, verdict.location))
    return Verification(verdicts, data.bad_sample_limit if limit is None else limit, already)


def count_shards(data: DataConfig) -> int:
    """Return how many shards `verify` will deal with."""
    return sum(len(find_shards(s.shards, f"data source {s.name}")) for s in (*data.sources, *data.validation))


def as_json(found: Verification) -> dict[str, Any]:
    """Return plain values for machines."""
    return {
        "samples": found.samples,
        "shards": len(found.verdicts),
        "bad": [asdict(bad) for bad in found.bad],
        "stale_shards": [verdict.location for verdict in found.verdicts if verdict.stale],
        "failures": found.failures(),
    }


def as_text(found: Verification, record: str | Path) -> Iterator[str]:
    """Yield the lines for a terminal; the bad samples themselves stand in the record."""
    for source in dict.fromkeys(verdict.source for verdict in found.verdicts):
        own = [verdict for verdict in found.verdicts if verdict.source == source]
        samples, bad = sum(v.samples for v in own), sum(len(v.bad) for v in own)
        shards = f"{len(own):,} shard{'s' * (len(own) != 1)}"
        yield f"{source}, read as {own[0].kind}: {samples:,} samples in {shards}, {bad:,} bad"
    for reason, group in by_reason(found.bad):
        first = ", ".join(f"{bad.source}/{bad.shard}/{bad.key}" for bad in group[:3])
        yield f"bad, {len(group):,}: {reason}; {'all' if len(group) <= 3 else 'such as'}: {first}"
    stale = [verdict for verdict in found.verdicts if verdict.stale]
    if stale:
        yield (
            f"{len(stale):,} shards changed after they were listed, the first {stale[0].location}: the next start "
            "lists them again, or `m3ae-scale data index` now"
        )
    if found.known:
        yield f"{found.known:,} shards were verified before and have not changed; delete {record} to read all again"
    yield f"every shard with its bad samples: {record}"
    failures = found.failures()
    yield from (f"FAILED: {failure}" for failure in failures[:_FAILURES])
    if len(failures) > _FAILURES:
        yield f"FAILED: {len(failures) - _FAILURES:,} more"
    if not failures:
        replaced = f"; it replaces the {len(found.bad):,} bad samples" if found.bad else ""
        yield f"all is well: training can use these shards{replaced}"


@dataclass(frozen=True)
class _Task:
    """A shard to verify: what is known of it, and the listing that a saved index has."""

    verdict: Verdict
    cache: Cache
    index: tuple[Path, int] | None  # an index that claims to be up to date, and its row


def _tasks(source: SourceConfig, cache: Cache) -> Iterator[_Task]:
    where = f"data source {source.name}"
    locations = find_shards(source.shards, where)
    there = [location for location in locations if is_remote(location) or os.path.exists(location)]
    saved = dict(zip(there, saved_index(there, cache, where), strict=True))
    for name, location in zip(short_names(locations), locations, strict=True):
        row = saved.get(location)
        size, mtime_ns = 0, 0
        if location in saved and not is_remote(location):
            state = os.stat(location)
            size, mtime_ns = state.st_size, state.st_mtime_ns
        fresh = row is not None and row[2]
        verdict = Verdict(source.name, source.kind, name, location, size, mtime_ns, stale=row is not None and not fresh)
        yield _Task(verdict, cache, (row[0].path, row[1]) if row is not None and fresh else None)


def _read_record(path: Path) -> dict[tuple[str, Kind, str], Verdict]:
    """The verdicts that still hold if their shards have not changed; what was wrong with a shard is looked at anew."""
    found: dict[tuple[str, Kind, str], Verdict] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            fields = json.loads(line)
            verdict = Verdict(**{**fields, "bad": [(key, reason) for key, reason in fields["bad"]]})
        except (ValueError, TypeError, KeyError):  # a crash cut it short, or it is not ours
            continue
        if not verdict.damage and not verdict.index:
            found[verdict.source, verdict.kind, verdict.location] = verdict
    return found


def _each(tasks: list[_Task], processes: int) -> Iterator[Verdict]:
    """Yield verdicts as they come."""
    processes = min(processes, len(tasks))
    if processes <= 1:
        yield from map(_verify_shard, tasks)
        return
    # Ctrl-C ends the workers without a word each; the parent tells.
    quiet = (signal.SIGINT, signal.SIG_DFL)
    with ProcessPoolExecutor(processes, get_context("fork"), initializer=signal.signal, initargs=quiet) as pool:
        try:
            for future in as_completed([pool.submit(_verify_shard, task) for task in tasks]):
                yield future.result()
        except BrokenProcessPool:
            raise InputError(
                "a verifying process died, most often because the machine ran out of memory; lower --processes and run "
                "it again: it goes on where it was"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _verify_shard(task: _Task) -> Verdict:
    verdict, files = task.verdict, ShardFiles(task.cache)
    try:
        path = files.path(verdict.location)
        size = path.stat().st_size
        listing = list_samples(path)
        bad = list(_bad_samples(verdict, size, listing, files))
    except NotATar as error:
        return replace(verdict, damage=f"expected a tar shard, but {error}")
    except ShardError as error:
        return replace(verdict, damage=str(error))
    except OSError as error:
        return replace(verdict, damage=f"cannot read the shard: {error.strerror}")
    finally:
        files.close()
    return replace(
        verdict,
        samples=len(listing.samples),
        bad=bad,
        damage=listing.damage,
        index=_contradiction(task.index, size, listing) if task.index else "",
    )


def _bad_samples(verdict: Verdict, size: int, listing: Listing, files: ShardFiles) -> Iterator[tuple[str, str]]:
    for i in range(len(listing.samples)):
        entry = entry_of(listing.samples, listing.keys, i)
        try:
            check_sample(
                read_sample((verdict.source, verdict.shard), verdict.kind, entry, files, verdict.location, size)
            )
        except (BadSample, ShardError) as error:
            yield entry.key, str(error)


def check_sample(raw: RawSample) -> None:
    """Decode all that the kind promises. Raises BadSample for what training could not use."""
    image, text = promised(raw)
    if text is not None and not read_text(text).strip() and image is None:
        raise BadSample("the text is blank, or holds nothing that makes a word piece")
    if image is not None:
        decode_rgb(image)


def _contradiction(index: tuple[Path, int], size: int, listing: Listing) -> str:
    """How the row of a saved index differs from the shard as it is."""
    file, row = _index_file(index[0]), index[1]
    saved = file.listing(row)
    same_bytes = int(file.table["bytes"][row]) == size
    if same_bytes and saved.keys == listing.keys and np.array_equal(saved.samples, listing.samples):
        return ""
    return (
        f"holds {len(listing.samples)} samples that are not the {len(saved.samples)} of its index, {index[0]}, though "
        "that seems up to date; delete that index"
    )


@lru_cache(maxsize=4)
def _index_file(path: Path) -> IndexFile:
    return IndexFile(path)
