import os
import time
from pathlib import Path

import pytest

from m3ae_scale.engine.operations import STALE_SECONDS, clear_stale_locks


def test_only_a_lock_that_nobody_can_hold_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    for name, age in (("old", STALE_SECONDS + 60), ("young", 60)):
        lock = tmp_path / "py311_cpu" / name / "lock"
        lock.parent.mkdir(parents=True)
        lock.touch()
        os.utime(lock, (time.time() - age,) * 2)
    assert [lock.parent.name for lock in clear_stale_locks()] == ["old"]
    assert clear_stale_locks() == []
    assert (tmp_path / "py311_cpu" / "young" / "lock").exists()
