"""The batch scripts are plain bash that shellcheck has nothing to say about."""

import shutil
import subprocess
from pathlib import Path

import pytest


def scripts(root: Path) -> list[Path]:
    local = [root / "slurm" / "local_cluster" / name for name in ("start", "stop", "fail", "common.sh")]
    return [*sorted((root / "slurm").glob("*.sbatch")), root / "slurm" / "site.sh", *local]


def test_bash_can_read_them(root: Path) -> None:
    for script in scripts(root):
        subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="no shellcheck here: apt-get install shellcheck")
def test_shellcheck_is_silent(root: Path) -> None:
    done = subprocess.run(["shellcheck", "-x", *map(str, scripts(root))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
