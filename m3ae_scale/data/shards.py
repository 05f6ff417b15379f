"""Finds the shards that a source names, and reads members of them at their offsets, local or remote."""

import glob
import math
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise, takewhile
from pathlib import Path
from urllib.parse import unquote, urlparse

from braceexpand import braceexpand

from m3ae_scale.data.remote import Cache, ShardError, fetch, is_remote, open_filesystem
from m3ae_scale.errors import InputError

_FILES_OPEN = 128  # per process
_FETCHES_AHEAD = 4  # threads per process
_FORGIVE_AFTER = 600.0  # seconds until a shard whose retries all failed is tried again: it has thousands of samples
_WILL_NOT_PASS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def find_shards(patterns: str | list[str], where: str) -> list[str]:
    """Return the sorted paths and URLs of the shards that `patterns` name.

    A pattern is a folder (its *.tar, nested ones too), a glob, a brace pattern such as {00000..00099}.tar, a path, a
    URL (file:, http(s)://, s3:// and what else fsspec knows), a pipe: command, or a list of those.
    where: the key of the experiment, for the message.
    Raises InputError when a pattern names nothing, or two patterns name one shard.
    """
    given = [patterns] if isinstance(patterns, str) else patterns
    found = [shard for pattern in given for shard in _expand(pattern, where)]
    if not found:
        raise InputError(f"{where}: found no shard; give a folder, a glob, a brace pattern or a URL")
    found.sort()
    twice = next((a for a, b in pairwise(found) if a == b), None)
    if twice:
        raise InputError(f"{where}: {twice} is named twice; name each shard once")
    return found


def _expand(pattern: str, where: str) -> list[str]:
    try:
        expanded = list(braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError as error:
        raise InputError(f"{where}: {pattern}: {error}; write braces as in {{00000..00099}}.tar") from None
    if len(expanded) > 1 and not any(c in pattern for c in "*?["):
        return [_local(one) for one in expanded]  # the index finds out which are missing, in one pass
    return [shard for one in expanded for shard in _match(_local(one), where)]


def _local(location: str) -> str:
    if location.startswith("file:"):
        return unquote(urlparse(location).path)
    return location if is_remote(location) else os.path.normpath(os.path.expanduser(location))


def _match(location: str, where: str) -> list[str]:
    listed = location.endswith("/") or any(c in location for c in "*?[")
    if is_remote(location):
        if not listed or location.startswith("pipe:") or (location.startswith("http") and not location.endswith("/")):
            return [location]  # in http, ? begins a query
        if location.startswith("http"):
            raise InputError(f"{where}: {location}: a folder behind http cannot be listed; use {{00000..00099}}.tar")
        scheme = location.partition("://")[0]
        pattern = location + "**/*.tar" if location.endswith("/") else location
        found = [f"{scheme}://{path}" for path in open_filesystem(location).glob(pattern)]
    elif os.path.isdir(location):
        found = [
            f"{folder}/{name}" for folder, _, names in os.walk(location) for name in names if name.endswith(".tar")
        ]
    elif any(c in location for c in "*?[") and not os.path.exists(location):
        found = glob.glob(location, recursive=True)
    else:
        return [location]
    if not found:
        raise InputError(f"{where}: {location}: found no shard (*.tar) there; check the path")
    return found


def short_names(locations: list[str]) -> list[str]:
    """Return a name for each shard: its location without the folder that all share, so that data can move."""
    folders = {location[: location.rfind("/") + 1] for location in locations}
    # What the first and the last in sorted order share, all share; up to its last "/" it is a folder.
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(min(folders), max(folders), strict=False))
    prefix = "".join(character for character, _ in shared).rfind("/") + 1
    return [location[prefix:] for location in locations]


class ShardFiles:
    """The shards that one process has open; the least recently used is closed when there are too many."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self._open: OrderedDict[str, int] = OrderedDict()  # location -> file descriptor
        self._coming: dict[str, Future[Path]] = {}
        self._failed: dict[str, tuple[float, str]] = {}  # location -> when and why it could not be fetched
        self._threads: ThreadPoolExecutor | None = None

    def read(self, location: str, offset: int, size: int, shard_bytes: int) -> bytes:
        """Return `size` bytes at `offset` of the shard.

        shard_bytes: its size when it was listed.
        Raises ShardError when the shard cannot be opened, is another one than was listed, or ends before.
        """
        data = self._read(location, offset, size, shard_bytes)
        if len(data) != size:
            raise ShardError(f"the shard ends at byte {offset + len(data)}, inside this sample")
        return data

    def fetch_ahead(self, locations: Iterable[str]) -> None:
        """Begin to bring remote shards that will be read soon."""
        for location in locations:
            if is_remote(location) and location not in self._open and location not in self._coming:
                self._threads = self._threads or ThreadPoolExecutor(_FETCHES_AHEAD, thread_name_prefix="fetch")
                self._coming[location] = self._threads.submit(fetch, location, self.cache)

    def close(self) -> None:
        """Close every file."""
        while self._open:
            os.close(self._open.popitem()[1])
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def path(self, location: str) -> Path:
        """Return a local file of the shard, fetched if need be. Raises ShardError."""
        if not is_remote(location):
            return Path(location)
        when, reason = self._failed.get(location, (-math.inf, ""))
        if time.monotonic() - when < _FORGIVE_AFTER:
            raise ShardError(reason)
        coming = self._coming.pop(location, None)
        try:
            path = coming.result() if coming else fetch(location, self.cache)
            # Another rank may have evicted it since it came.
            return path if path.exists() else fetch(location, self.cache)
        except ShardError as error:
            self._failed[location] = (time.monotonic(), str(error))
            raise

    def _read(self, location: str, offset: int, size: int, shard_bytes: int) -> bytes:
        attempt = 0
        while True:
            try:
                return os.pread(self._descriptor(location, shard_bytes), size, offset)
            except OSError as error:
                # A network file system that stumbles does not make a sample bad: that would change the order.
                if attempt >= self.cache.retries or isinstance(error, _WILL_NOT_PASS):
                    raise ShardError(f"cannot read the shard: {error.strerror}") from None
                if location in self._open:  # its descriptor may be stale
                    os.close(self._open.pop(location))
                self.cache.wait(attempt)
                attempt += 1

    def _descriptor(self, location: str, shard_bytes: int) -> int:
        if location in self._open:
            self._open.move_to_end(location)
            return self._open[location]
        while len(self._open) >= _FILES_OPEN:
            os.close(self._open.popitem(last=False)[1])
        descriptor = os.open(self.path(location), os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(descriptor).st_size
        if found != shard_bytes:
            os.close(descriptor)
            raise ShardError(f"the shard has {found} bytes, its index says {shard_bytes}: list it again")
        self._open[location] = descriptor
        return descriptor
