"""DeepSpeed compiles operations on first use, under a lock file that a killed process leaves behind for ever."""

import os
import time
from pathlib import Path

STALE_SECONDS = 15 * 60  # no operation takes this long to compile


def clear_stale_locks() -> list[Path]:
    """Remove locks that nobody can hold any more, so that a run killed while compiling does not hang the next one."""
    default = Path.home() / ".cache" / "torch_extensions"
    cleared = []
    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR", default)).glob("**/lock"):
        try:
            if time.time() - lock.stat().st_mtime > STALE_SECONDS:
                lock.unlink()
                cleared.append(lock)
        except OSError:
            continue  # another rank was quicker
    return cleared
