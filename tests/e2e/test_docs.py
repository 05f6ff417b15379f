"""Every command of the README and of docs/*.md runs, in the order of its page, on small data.

A ```bash or ```python block runs as it stands, but for SHORTER; commands that are only shown stand in a ```text block.
A ```yaml block that begins with a comment such as "# photos.yaml" is saved under that name first.
"""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w.-]+\.yaml)\n")


def make_photos(folder: Path) -> None:
    """photos/ with captions.csv, as docs/your-data.md begins."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    with (folder / "photos" / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "caption"])
        for i in range(72):
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((96, 72)).save(folder / "photos" / f"{i:04d}.jpg")
            writer.writerow([f"{i:04d}.jpg", f"number {i}, of many colours"])


# What a page takes for granted; every page has the configs of the project at hand.
PREPARE: dict[str, Callable[[Path], None]] = {
    "your-data.md": make_photos,
    "README.md": lambda folder: Image.new("RGB", (96, 72), "orange").save(folder / "cat.jpg"),
}
# What would take minutes runs on less.
SHORTER = {
    "--samples 3000 --image-only 500 --text-only 500 --validation 256": "--samples 240 --image-only 40 --text-only 40 "
    "--validation 16",
    "pretrain configs/quickstart.yaml --nproc 2\n": "pretrain configs/quickstart.yaml --nproc 2 "
    "--set train.length='3 steps'\n",
}


COMMANDS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(match[1], match[2]) for match in FENCE.finditer(page.read_text())]


TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in TEXTS if any(kind == "bash" for kind, _ in blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_runs(page: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    PREPARE.get(page.name, lambda folder: None)(tmp_path)
    for kind, text in blocks(page):
        named = FILE_NAME.match(text)
        if kind == "yaml" and named:
            (tmp_path / named[1]).write_text(text)
        if kind in COMMANDS:
            for long, short in SHORTER.items():
                text = text.replace(long, short)
            done = subprocess.run(
                [*COMMANDS[kind], text],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            assert done.returncode == 0, f"{text}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}"


def test_yaml_that_is_shown_is_an_experiment(tmp_path: Path) -> None:
    """A section shown alone is valid in place of the quickstart's."""
    import yaml

    from m3ae_scale.config import load_experiment

    base = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    for page in PAGES:
        for number, text in enumerate(text for kind, text in blocks(page) if kind == "yaml"):
            path = tmp_path / f"{page.stem}-{number}.yaml"
            path.write_text(yaml.safe_dump({**base, **yaml.safe_load(text)}))
            load_experiment(str(path), [])


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert os.path.exists(page.parent / target), f"{page.name}: {target}"
