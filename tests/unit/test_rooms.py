"""Rules of the rooms that import-linter cannot say: about parts of other packages, and rooms that may be missing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BASE = ("m3ae_scale.config", "m3ae_scale.sizes", "m3ae_scale.batch", "m3ae_scale.errors")


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(root: Path, room: str = "") -> list[Path]:
    return sorted((root / "m3ae_scale" / room).rglob("*.py"))


def test_only_one_file_knows_megatrons_linears(root: Path) -> None:
    users = {
        path.relative_to(root / "m3ae_scale").as_posix()
        for path in files(root)
        for name in imports(path)
        if name.startswith("megatron.core.tensor_parallel")
    }
    assert users <= {"parallel/linear.py"}


def test_the_model_never_names_a_rank(root: Path) -> None:
    for path in files(root, "model"):
        for name in imports(path):
            assert not name.startswith("torch.distributed"), path
        assert "get_rank" not in path.read_text(), path


@pytest.mark.parametrize("room", ["data", "planning"])
def test_rooms_of_the_host_see_only_the_base(root: Path, room: str) -> None:
    for path in files(root, room):
        for name in imports(path):
            if name.startswith("m3ae_scale."):
                assert name.startswith((*BASE, f"m3ae_scale.{room}")), f"{path} imports {name}"
            assert not name.startswith(("torch.distributed", "deepspeed", "megatron")), f"{path} imports {name}"


def test_every_file_says_its_job_in_its_first_line(root: Path) -> None:
    for path in files(root):
        assert ast.get_docstring(ast.parse(path.read_text())), path
