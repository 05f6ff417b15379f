"""Remembers bad samples, as JSON lines, and stops the run when a source has too many of them.

A bad sample is replaced, so that steps and order hold; it is not silent: source, shard, key and reason are written
down, and the counts are there for the log. Each rank judges what it has read itself.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from m3ae_scale.errors import InputError

FEWEST_TO_STOP = 20  # different bad samples of a source below which a run goes on whatever their share


@dataclass(frozen=True)
class Bad:
    """One sample that cannot be used, or the rest of a damaged shard."""

    source: str
    shard: str
    key: str
    reason: str

    @property
    def name(self) -> tuple[str, str, str]:
        """What tells it apart."""
        return self.source, self.shard, self.key


class Quarantine:
    """The bad samples that this rank has met.

    limit: share of the samples read of a source that may be bad; 0: none.
    folder: where `quarantine-rank*.jsonl` are; what they name already is not written twice. None: only in memory.
    """

    def __init__(self, limit: float, folder: Path | None = None, rank: int = 0):
        self.limit = limit
        self.counts: Counter[str] = Counter()  # by source: different bad samples met by this rank
        self._path = folder / f"quarantine-rank{rank}.jsonl" if folder else None
        self._written = (
            {bad.name for path in sorted(folder.glob("quarantine-rank*.jsonl")) for bad in read(path)}
            if folder
            else set()
        )
        self._met: dict[tuple[str, str, str], Bad] = {}
        self._bad: Counter[str] = Counter()  # by source: how often a bad one was read
        self._tried: Counter[str] = Counter()  # by source: samples read

    def note(self, bad: Iterable[Bad]) -> None:
        """Write down what is new, without judging."""
        new = []
        for one in bad:
            if one.name not in self._met:
                self._met[one.name] = one
                self.counts[one.source] += 1
                if one.name not in self._written:
                    new.append(one)
        if new and self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.writelines(json.dumps(asdict(one)) + "\n" for one in new)

    def judge(self, bad: list[Bad], tried: Mapping[str, int]) -> None:
        """Write down what is new of `bad`, found among the samples `tried` by source.

        Raises InputError when a source is past the limit: it names the shards with most bad samples.
        """
        self.note(bad)
        self._tried.update(tried)
        self._bad.update(one.source for one in bad)
        for source in {one.source for one in bad}:
            share = self._bad[source] / self._tried[source]
            if share > self.limit and (self.counts[source] >= FEWEST_TO_STOP or self.limit == 0):
                raise InputError(self._verdict(source))

    def _verdict(self, source: str) -> str:
        met = [one for one in self._met.values() if one.source == source]
        shards = Counter(one.shard for one in met).most_common(3)
        where = ", ".join(f"{shard} ({count})" for shard, count in shards)
        reason = Counter(one.reason for one in met).most_common(1)[0][0]
        record = f"; all are in {self._path}" if self._path else ""
        return (
            f"data source {source}: {self._bad[source]} of {self._tried[source]} samples read cannot be used, more "
            f"than data.bad_sample_limit ({self.limit:g}); most are in {where}, most often: {reason}{record}"
        )


def by_reason(bad: Iterable[Bad]) -> list[tuple[str, list[Bad]]]:
    """Group by reason, the most frequent first; reasons that differ in their numbers only are one."""
    groups: dict[str, list[Bad]] = {}
    for one in bad:
        groups.setdefault(re.sub(r"[0-9][0-9,]*", "N", one.reason), []).append(one)
    return [(group[0].reason, group) for group in sorted(groups.values(), key=len, reverse=True)]


def read(path: Path) -> list[Bad]:
    """Return the bad samples of a JSON-lines file; a line that a crash cut short is passed over."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(Bad(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found
