"""What `m3ae-scale checkpoint` prints, its exit codes, and that weights come out as they went in."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_checkpoint import SHAPES, make_checkpoint, values
from safetensors.torch import load_file

from m3ae_scale.cli.main import main
from m3ae_scale.engine.checkpoint import read_weights
from m3ae_scale.errors import InputError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the checkpoints of steps 5 and 7."""
    make_checkpoint(tmp_path, 5, experiment={"seed": 1})
    make_checkpoint(tmp_path, 7, experiment={"seed": 2})
    return tmp_path


def call(*arguments: object) -> int:
    return main(["checkpoint", *map(str, arguments)])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_ls(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ls", run) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == ["7", "5"]
    assert "tensor 1 x data 1, ZeRO 0, fp32" in rows[0]
    (run / "checkpoints" / "step_00000005" / "manifest.json").write_text("{")
    assert call("ls", run, "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(Path(row["checkpoint"]).name, row["step"]) for row in listed] == [
        ("step_00000005", None),
        ("step_00000007", 7),
    ]


def test_ls_of_nothing_is_a_mistake_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("ls", tmp_path) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_verify_tells_by_its_exit_code(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", run) == 0
    assert capsys.readouterr().out.count("good") == 2
    flip(run / "checkpoints" / "step_00000007" / "exp_avg-00001.safetensors")
    assert call("verify", run) == 1
    out = capsys.readouterr().out
    assert out.count("good") == 1 and "exp_avg-00001.safetensors: its hash differs" in out
    assert call("verify", run / "checkpoints" / "step_00000005") == 0


def test_diff(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (run / "checkpoints" / f"step_{step:08d}" for step in (5, 7))
    assert call("diff", one, one) == 0
    assert capsys.readouterr().out == f"{3 * len(SHAPES)} tensors are equal, 0 differ\n"
    assert call("diff", one, other, "--limit", 2) == 0
    out = capsys.readouterr().out
    assert "step: 5 | 7" in out and "progress.experiment.seed: 1 | 2" in out
    assert f"0 tensors are equal, {3 * len(SHAPES)} differ" in out and "and 7 more" in out
    x, y = (values("weights", "encoder.cls_token", (4,), step).astype(float) for step in (5, 7))
    assert call("diff", one, other, "--limit", 9) == 0
    line = next(row for row in capsys.readouterr().out.splitlines() if row.endswith("weights encoder.cls_token"))
    relative, largest = map(float, line.split()[:2])
    assert largest == pytest.approx(np.abs(x - y).max(), rel=1e-2)
    assert relative == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x), rel=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("part", ["model", "encoder"])
def test_export(run: Path, tmp_path: Path, part: str, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.safetensors"
    assert call("export", run, output, "--part", part, "--precision", precision) == 0
    loaded = load_file(output)
    expected = {n: torch.from_numpy(values("weights", n, shape, 7)) for n, shape in SHAPES.items()}
    names = [name for name in SHAPES if part == "model" or name.startswith("encoder.")]
    assert sorted(loaded) == sorted(names)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    for name in names:
        assert torch.equal(loaded[name], expected[name].to(dtype))
        assert torch.equal(read_weights(output)[name], expected[name].to(dtype).float())
    assert call("export", run, output) == 2  # it exists
    assert "exists; remove it" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tmp-*"))


def test_weights_by_prefix(run: Path) -> None:
    encoder = read_weights(run, "encoder.")
    assert sorted(encoder) == ["cls_token", "embed.text.weight"]
    assert np.array_equal(encoder["cls_token"].numpy(), values("weights", "encoder.cls_token", (4,), 7))
    older = read_weights(run / "checkpoints" / "step_00000005", "encoder.")
    assert np.array_equal(older["cls_token"].numpy(), values("weights", "encoder.cls_token", (4,), 5))
    with pytest.raises(InputError, match="no parameter starts with 'coder'"):
        read_weights(run, "coder")


def test_damaged_weights_are_never_read(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run / "checkpoints" / "step_00000007"
    flip(newest / "weights-00001.safetensors")
    with pytest.raises(InputError, match="take an older checkpoint"):
        read_weights(newest)
    assert np.array_equal(read_weights(run)["decoder.norm.weight"], values("weights", "decoder.norm.weight", (3,), 5))
    assert "passing over checkpoint step_00000007" in capsys.readouterr().err
    assert call("export", newest, run / "x.safetensors") == 2
    assert not (run / "x.safetensors").exists()
