"""Shards: what a pattern names, and remote ones that come whole over connections that drop, stall and lie."""

import contextlib
import errno
import functools
import http.server
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import pytest
from made_shards import experiment, write_shards

from m3ae_scale.data.index import INDEX_NAME
from m3ae_scale.data.loader import open_training
from m3ae_scale.data.remote import Cache, ShardError, fetch
from m3ae_scale.data.shards import ShardFiles, find_shards, short_names
from m3ae_scale.errors import InputError

# Patterns


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a/0.tar", "a/1.tar", "a/deep/2.tar", "b/3.tar", "b/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ("{}/a", ["a/0.tar", "a/1.tar", "a/deep/2.tar"]),
        ("{}/a/", ["a/0.tar", "a/1.tar", "a/deep/2.tar"]),
        ("{}/a/*.tar", ["a/0.tar", "a/1.tar"]),
        ("{}/**/*.tar", ["a/0.tar", "a/1.tar", "a/deep/2.tar", "b/3.tar"]),
        ("{}/a/{{0..1}}.tar", ["a/0.tar", "a/1.tar"]),
        ("{}/{{a,b}}/*.tar", ["a/0.tar", "a/1.tar", "b/3.tar"]),
        ("file:{}/b/3.tar", ["b/3.tar"]),
        ("file://{}/b/3.tar", ["b/3.tar"]),
        (["{}/b/3.tar", "{}/a/0.tar"], ["a/0.tar", "b/3.tar"]),
    ],
)
def test_a_pattern_names_shards(tree: Path, patterns: str | list[str], found: list[str]) -> None:
    given = patterns.format(tree) if isinstance(patterns, str) else [p.format(tree) for p in patterns]
    assert find_shards(given, "here") == [f"{tree}/{name}" for name in found]


def test_remote_patterns_are_not_looked_up() -> None:
    assert find_shards("https://host/x-{00..02}.tar", "here") == [f"https://host/x-0{i}.tar" for i in range(3)]
    assert find_shards("pipe:cat '/data/*.tar' {0..1}", "here") == [f"pipe:cat '/data/*.tar' {i}" for i in range(2)]
    assert find_shards("http://host/x.tar?version=2", "here") == ["http://host/x.tar?version=2"]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("{}/c/*.tar", "found no shard"),
        (["{}/a", "{}/a/0.tar"], "a/0.tar is named twice"),
        ("https://host/folder/", "cannot be listed; use"),
        ("{}/a/{{0..1.tar", "here: "),
        ("nosuch://host/*.tar", "nosuch"),
    ],
)
def test_a_pattern_that_names_nothing_is_refused(tree: Path, patterns: str | list[str], message: str) -> None:
    given = patterns.format(tree) if isinstance(patterns, str) else [p.format(tree) for p in patterns]
    with pytest.raises(InputError, match=message):
        find_shards(given, "here")


def test_short_names_tell_shards_apart_wherever_the_data_lies() -> None:
    assert short_names(["/x/y/0.tar"]) == ["0.tar"]
    assert short_names(["0.tar"]) == ["0.tar"]
    assert short_names(["/x/a/0.tar", "/x/a/1.tar", "/x/b/0.tar"]) == ["a/0.tar", "a/1.tar", "b/0.tar"]
    assert short_names(["/x/ab/0.tar", "/x/ac/0.tar"]) == ["ab/0.tar", "ac/0.tar"]
    assert short_names(["s3://bucket/p/0.tar", "s3://bucket/p/1.tar"]) == ["0.tar", "1.tar"]


# A server with faults


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves a folder; the first requests of each path meet the faults that the server has for it, one each."""

    server: "Server"

    def do_GET(self) -> None:
        with self.server.guard:
            self.server.requests.append((self.path, self.headers.get("Range")))
            faults = self.server.faults.setdefault(self.path, list(self.server.every_path))
            fault = faults.pop(0) if faults else ""
        path = self.server.folder / self.path.lstrip("/")
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if not path.exists():
            self.send_error(404)
            return
        body, begin = path.read_bytes(), 0
        asked = self.headers.get("Range")
        if asked and self.server.ranges and self.headers.get("If-Range") == self.tag(body):
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.send_header("ETag", self.tag(body))
        self.end_headers()
        sent = body[begin:]
        if fault == "truncate":
            sent = sent[: len(sent) // 2]
        if fault == "reset":
            self.wfile.write(sent[:100])
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # an RST, not a FIN
            self.connection.close()
            return
        if fault == "slow":
            for i in range(0, len(sent), 4096):
                self.wfile.write(sent[i : i + 4096])
                time.sleep(0.005)
            return
        self.wfile.write(sent)

    def tag(self, body: bytes) -> str:
        return f'"{hash(body)}"'

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a connection that we closed ourselves
            super().handle()


class Server(http.server.ThreadingHTTPServer):
    """One folder behind http."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Faulty)
        self.folder, self.ranges = folder, True
        self.every_path: list[str] = []
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.guard = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", limit=10**9, retries=5, first_wait=0.01)


BODY = os.urandom(300_000)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    "faults", [["500"], ["503", "429"], ["truncate"], ["reset"], ["slow"], ["truncate", "500", "reset", "truncate"]]
)
def test_a_shard_comes_whole_over_a_bad_line(server: Server, cache: Cache, faults: list[str], ranges: bool) -> None:
    (server.folder / "0.tar").write_bytes(BODY)
    server.faults["/0.tar"], server.ranges = list(faults), ranges
    assert fetch(f"{server.url}/0.tar", cache).read_bytes() == BODY
    assert len(server.requests) == len([f for f in faults if f != "slow"]) + 1
    fetch(f"{server.url}/0.tar", cache)
    assert len(server.requests) == len([f for f in faults if f != "slow"]) + 1, "fetched again though it is here"
    assert not [p for p in cache.path("x").parent.iterdir() if ".part" in p.name]


def test_a_cut_download_goes_on_where_it_was_cut(server: Server, cache: Cache) -> None:
    (server.folder / "0.tar").write_bytes(BODY)
    server.faults["/0.tar"] = ["truncate"]
    fetch(f"{server.url}/0.tar", cache)
    assert server.requests == [("/0.tar", None), ("/0.tar", "bytes=150000-")]


def test_a_shard_that_changed_during_a_cut_download_starts_anew(server: Server, cache: Cache) -> None:
    (server.folder / "0.tar").write_bytes(b"old" * 1000)
    server.faults["/0.tar"] = ["truncate", "500"]
    waits = Cache(cache.folder, cache.limit, cache.retries, first_wait=0.3)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(fetch, f"{server.url}/0.tar", waits)
        while not server.requests:
            time.sleep(0.01)
        time.sleep(0.05)
        (server.folder / "0.tar").write_bytes(BODY)
        assert coming.result().read_bytes() == BODY


def test_what_is_not_there_is_not_tried_again(server: Server, cache: Cache) -> None:
    with pytest.raises(ShardError, match="HTTP 404"):
        fetch(f"{server.url}/0.tar", cache)
    assert len(server.requests) == 1


def test_after_all_retries_the_reason_is_told(server: Server, cache: Cache) -> None:
    (server.folder / "0.tar").write_bytes(BODY)
    server.faults["/0.tar"] = ["500"] * 100
    with pytest.raises(ShardError, match=r"HTTP 500 .* \(tried 6 times\)"):
        fetch(f"{server.url}/0.tar", cache)
    with pytest.raises(ShardError, match="refused"):
        fetch("http://127.0.0.1:9/0.tar", cache)


def test_processes_of_a_node_fetch_a_shard_once(server: Server, cache: Cache) -> None:
    (server.folder / "0.tar").write_bytes(BODY)
    server.faults["/0.tar"] = ["slow"]
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        paths = list(pool.map(functools.partial(fetch, cache=cache), [f"{server.url}/0.tar"] * 8))
    assert {p.read_bytes() for p in paths} == {BODY}
    assert len(server.requests) == 1


def test_the_cache_stays_below_its_limit_and_drops_what_was_used_least(server: Server, tmp_path: Path) -> None:
    for i in range(5):
        (server.folder / f"{i}.tar").write_bytes(bytes([i]) * 100_000)
    small = Cache(tmp_path / "small", limit=350_000, retries=0)
    files = ShardFiles(small)

    def read(i: int) -> bytes:
        return files.read(f"{server.url}/{i}.tar", 5, 10, shard_bytes=100_000)

    for i in (0, 1, 2):
        assert read(i) == bytes([i]) * 10
    fetch(f"{server.url}/0.tar", small)  # used again
    assert read(3) == bytes([3]) * 10
    kept = {small.path(f"{server.url}/{i}.tar").exists() and i for i in range(5)} - {False}
    assert 1 not in kept and {2, 3} <= kept and small.path(f"{server.url}/0.tar").exists()
    for i in (4, 1, 3, 0, 2):
        assert read(i) == bytes([i]) * 10
        present = list((small.folder / "shards").iterdir())
        assert sum(p.stat().st_size for p in present) <= small.limit


def test_a_pipe_is_a_shard(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "0.tar").write_bytes(BODY)
    assert fetch(f"pipe:cat {tmp_path}/0.tar", cache).read_bytes() == BODY
    with pytest.raises(ShardError, match=r"exited with 3: no such bucket \(tried 6 times\)"):
        fetch("pipe:echo no such bucket >&2; exit 3", cache)


def test_a_shard_that_changed_since_it_was_listed_is_not_read(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "0.tar").write_bytes(BODY)
    files = ShardFiles(cache)
    with pytest.raises(ShardError, match="has 300000 bytes, its index says 299999"):
        files.read(str(tmp_path / "0.tar"), 0, 10, shard_bytes=299_999)
    with pytest.raises(ShardError, match="No such file"):
        files.read(str(tmp_path / "1.tar"), 0, 10, shard_bytes=299_999)


def test_a_file_system_that_stumbles_does_not_make_a_sample_bad(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "0.tar").write_bytes(BODY)
    whole, faults = os.pread, [errno.ESTALE, errno.EIO, errno.ESTALE]

    def stumble(descriptor: int, size: int, offset: int) -> bytes:
        if faults:
            raise OSError(faults.pop(), "stumbled")
        return whole(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", stumble)
    assert ShardFiles(cache).read(str(tmp_path / "0.tar"), 7, 100, shard_bytes=300_000) == BODY[7:107]
    faults += [errno.EIO] * 6
    with pytest.raises(ShardError, match="stumbled"):
        ShardFiles(cache).read(str(tmp_path / "0.tar"), 7, 100, shard_bytes=300_000)


def test_a_shard_that_cannot_be_fetched_is_not_asked_for_with_each_of_its_samples(server: Server, cache: Cache) -> None:
    files = ShardFiles(cache)
    for sample in range(5):
        with pytest.raises(ShardError, match="HTTP 404"):
            files.read(f"{server.url}/gone.tar", 512 * sample, 10, shard_bytes=10_000)
    assert len(server.requests) == 1


# Training on remote shards


@pytest.mark.parametrize(("workers", "shipped_index"), [(0, False), (2, True)])
def test_training_from_a_faulty_server_is_training_from_disk(
    server: Server, tmp_path: Path, workers: int, shipped_index: bool
) -> None:
    write_shards(server.folder, [17, 21, 20])
    names = "{00000..00002}.tar"

    def run(folder: Path, workers: int) -> list[tuple[str, ...]]:
        base = experiment(tmp_path, [{"name": "pairs", "shards": f"{folder}/{names}"}], workers=workers)
        return [
            b.keys for b in islice(open_training(base, data_rank=0, data_world=1, micro_batch=12, accumulation=1), 12)
        ]

    expected = run(server.folder, 0)
    if not shipped_index:
        (server.folder / INDEX_NAME).unlink()
    server.every_path = ["500", "truncate"]
    url: str = server.url
    assert run(url, workers) == expected  # type: ignore[arg-type]
    fetched = [path for path, _ in server.requests if path.endswith(".tar")]
    assert len(fetched) == 3 * 3, "each shard: two faults and a success"


# S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket on a real S3-compatible server; skipped loudly where none is installed."""
    pytest.importorskip("s3fs", reason="S3 NOT TESTED: pip install s3fs")
    moto = pytest.importorskip("moto.server", reason='S3 NOT TESTED: pip install "moto[server]"')
    import boto3

    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(settings)
    boto3.client("s3").create_bucket(Bucket="shards")
    yield "shards"
    running.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_from_s3_is_training_from_disk(bucket: str, tmp_path: Path, workers: int) -> None:
    import boto3

    local = write_shards(tmp_path / "local", [7, 11, 9])
    for path in local.iterdir():
        boto3.client("s3").upload_file(str(path), bucket, f"some/{path.name}")

    def run(shards: str, workers: int) -> list[tuple[str, ...]]:
        base = experiment(tmp_path, [{"name": "pairs", "shards": shards}], workers=workers)
        return [
            b.keys for b in islice(open_training(base, data_rank=0, data_world=1, micro_batch=12, accumulation=1), 4)
        ]

    expected = run(str(local), 0)
    for shards in (f"s3://{bucket}/some/", f"s3://{bucket}/some/*.tar", f"s3://{bucket}/some/{{00000..00002}}.tar"):
        assert run(shards, workers) == expected


def test_a_missing_s3_shard_is_told(bucket: str, cache: Cache) -> None:
    with pytest.raises(ShardError, match="FileNotFoundError"):
        fetch(f"s3://{bucket}/nothing.tar", cache)
    with pytest.raises(InputError, match="found no shard"):
        find_shards(f"s3://{bucket}/empty/*.tar", "here")
