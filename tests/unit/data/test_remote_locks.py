"""Locks of the cache: one process may hold several, and must never wait for itself."""

from pathlib import Path

from m3ae_scale.data.remote import Cache


def test_no_two_locks_that_one_process_holds_are_the_same_file(tmp_path: Path) -> None:
    # They nest: listing holds the folder's lock while shards are fetched, and a fetched shard makes room for itself.
    cache = Cache(tmp_path, 10**9, 0)
    shards = {str(cache.lock("shard", f"pipe:cat {i}.tar").lock_file) for i in range(2000)}
    folders = {str(cache.lock("index", f"s3://bucket/{i}").lock_file) for i in range(2000)}
    assert not shards & folders and str(cache.lock("evict").lock_file) not in shards | folders
