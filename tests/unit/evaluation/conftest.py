"""The digits and a run, made once."""

from pathlib import Path

import digits
import pytest


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ as class folders, shards/train and shards/test, and runs/some."""
    root = tmp_path_factory.mktemp("digits")
    for name, part in (("train", digits.TRAIN), ("test", digits.TEST)):
        digits.write_folders(root / name, part)
        digits.write_shards(root / "shards" / name, part)
    digits.write_run(root / "runs" / "some")
    return root
