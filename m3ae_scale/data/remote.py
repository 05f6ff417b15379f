"""Brings a remote shard to a local file: retries with back-off, and a bounded disk cache that ranks of a node share.

A shard behind a URL is taken never to change under its name. Fetching writes aside and renames, under a lock, so that
a shard is fetched once per node and never seen half-written; the least recently used shards make room.
"""

import hashlib
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from m3ae_scale.config.schema import DataConfig
from m3ae_scale.errors import InputError

_TIMEOUT = 60  # seconds without a byte
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds between tries
_CHUNK = 2**20  # bytes
_UNFINISHED = (".part", ".part.tag")
_LOCKS = 256  # lock files; shards that hash to the same one wait for each other


class ShardError(Exception):
    """A shard that cannot be brought here or read; its text is the reason."""


@dataclass(frozen=True)
class Cache:
    """Where fetched shards lie, how many bytes of them, and how stubbornly they are fetched."""

    folder: Path
    limit: int  # bytes
    retries: int
    first_wait: float = _FIRST_WAIT  # seconds

    @classmethod
    def of(cls, data: DataConfig) -> "Cache":
        """Return the cache that the experiment names, or one of this user in the temporary folder."""
        default = Path(tempfile.gettempdir()) / f"m3ae_scale-cache-{os.getuid()}"
        return cls(Path(data.cache).expanduser() if data.cache else default, data.cache_bytes, data.retries)

    def path(self, location: str) -> Path:
        """Return where the shard at `location` lies once fetched."""
        readable = re.sub(r"[^A-Za-z0-9.]+", "-", location.rpartition("/")[2])[-80:]
        return self.folder / "shards" / f"{_digest(location)}-{readable}"

    def lock(self, purpose: str, what: str = "") -> FileLock:
        """Return the lock that processes of this node take for `purpose` on `what`.

        They nest: index, then shard, then evict. Files of different purposes are never the same one, or a process
        would wait for itself.
        """
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return FileLock(folder / f"{purpose}-{int(_digest(what), 16) % _LOCKS:03d}")

    def wait(self, attempt: int) -> None:
        """Wait after failed try number `attempt` (from 0): twice as long each time, up to a minute."""
        # Jitter keeps the ranks of a large job from coming back all at once.
        time.sleep(min(self.first_wait * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.5))


def is_remote(location: str) -> bool:
    """Whether `location` must be fetched before it can be read."""
    return location.startswith("pipe:") or ("://" in location and not location.startswith("file:"))


def fetch(location: str, cache: Cache) -> Path:
    """Return the local copy of the shard at `location`, fetched if need be.

    Raises ShardError when the shard does not exist or all retries failed.
    """
    target = cache.path(location)
    if not _touch(target):
        with cache.lock("shard", location):
            if not _touch(target):  # another rank may have brought it meanwhile
                _download(location, target, cache)
    return target


def _download(location: str, target: Path, cache: Cache) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    copy = _copier(location)
    for attempt in range(cache.retries + 1):
        try:
            copy(location, part)
            break
        except _Transient as error:
            if attempt == cache.retries:
                part.unlink(missing_ok=True)
                raise ShardError(f"{error} (tried {attempt + 1} times)") from None
            cache.wait(attempt)
    with cache.lock("evict"):
        _make_room(target.parent, cache.limit - part.stat().st_size)
        os.replace(part, target)


def _make_room(folder: Path, room: int) -> None:
    """Remove least recently used shards until the rest takes at most `room` bytes; open ones stay readable."""
    found = [
        (e.stat().st_mtime_ns, e.stat().st_size, e.path) for e in os.scandir(folder) if not e.name.endswith(_UNFINISHED)
    ]
    excess = sum(size for _, size, _ in found) - room
    for _, size, path in sorted(found):
        if excess <= 0:
            return
        Path(path).unlink(missing_ok=True)
        excess -= size


class _Transient(Exception):
    """A failure that may pass."""


def _copier(location: str) -> Callable[[str, Path], None]:
    if location.startswith("pipe:"):
        return _copy_pipe
    return _copy_http if location.startswith(("http://", "https://")) else _copy_fsspec


def _copy_http(location: str, part: Path) -> None:
    """Copy the body; after a broken connection, ask for the rest of the same version only."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(location)
    tag_file = part.with_name(part.name + ".tag")
    if have and tag_file.exists():
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag_file.read_text())
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as reply:
            resumed = reply.status == 206
            tag = reply.headers.get("ETag") or reply.headers.get("Last-Modified")
            if tag and not tag.startswith("W/"):
                tag_file.write_text(tag)
            length = reply.headers.get("Content-Length")
            with part.open("ab" if resumed else "wb") as out:
                before = out.tell()
                shutil.copyfileobj(reply, out, _CHUNK)
                got = out.tell() - before
        if length is not None and got != int(length):
            raise _Transient(f"the connection ended after {got} of {length} bytes")
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code} {error.reason}"
        if error.code == 416:  # the part is longer than the shard: start anew
            part.unlink(missing_ok=True)
        if error.code >= 500 or error.code in (408, 416, 425, 429):
            raise _Transient(reason) from None
        raise ShardError(reason) from None
    except (OSError, HTTPException) as error:
        raise _Transient(f"{type(error).__name__}: {error}") from None
    tag_file.unlink(missing_ok=True)


def _copy_pipe(location: str, part: Path) -> None:
    with part.open("wb") as out:
        done = subprocess.run(location.removeprefix("pipe:"), shell=True, stdout=out, stderr=subprocess.PIPE)
    if done.returncode:
        last_line = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        raise _Transient(f"the command exited with {done.returncode}: {last_line}")


def _copy_fsspec(location: str, part: Path) -> None:
    filesystem = open_filesystem(location)
    try:
        with filesystem.open(location, "rb") as source, part.open("wb") as out:
            _copy_all(source, out, filesystem.info(location).get("size"))
    except (FileNotFoundError, PermissionError) as error:
        raise ShardError(f"{type(error).__name__}: {error}") from None
    except _Transient:
        raise
    except Exception as error:  # each file system has exceptions of its own
        raise _Transient(f"{type(error).__name__}: {error}") from None


def _copy_all(source: BinaryIO, out: BinaryIO, size: int | None) -> None:
    shutil.copyfileobj(source, out, _CHUNK)
    if size is not None and out.tell() != size:
        raise _Transient(f"the connection ended after {out.tell()} of {size} bytes")


def open_filesystem(location: str) -> Any:
    """Return the fsspec file system of `location`, such as s3:// or gs://.

    Raises InputError when its package is not installed.
    """
    scheme = location.partition("://")[0]
    try:
        import fsspec

        return fsspec.filesystem(scheme, skip_instance_cache=True)
    except ImportError as error:
        raise InputError(f"{location}: {scheme}:// needs another package ({error}); install it") from None
    except ValueError as error:
        raise InputError(f"{location}: {error}; expected file:, http(s)://, pipe: or a file system of fsspec") from None


def _touch(path: Path) -> bool:
    try:
        os.utime(path)  # the time of last use, for the eviction
    except FileNotFoundError:
        return False
    return True


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
