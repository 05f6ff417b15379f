"""The data verbs as scripts use them: exit codes, JSON, and which PATHS they take."""

import json
import tarfile
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from PIL import Image

from m3ae_scale.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with shards/ of nine good pairs and a bad one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    image = BytesIO()
    Image.new("RGB", (20, 10), "red").save(image, "JPEG")
    with tarfile.open("shards/0.tar", "w") as tar:
        for i in range(10):
            for ending, content in (("jpg", image.getvalue() if i else b"none"), ("txt", b"red")):
                member = tarfile.TarInfo(f"{i}.{ending}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    return tmp_path


def test_verify_fails_past_its_limit(folder: Path, capsys: Capture) -> None:
    assert main(["data", "verify", "shards"]) == 1
    told = capsys.readouterr().out
    assert "bad, 1: not an image that can be read" in told and "all: shards/0.tar/0" in told
    assert "FAILED: data source shards: 1 of 10 samples cannot be used" in told
    assert main(["data", "verify", "shards", "--limit", "0.1"]) == 0
    assert "1 shards were verified before" in capsys.readouterr().out
    assert main(["data", "verify", "shards", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["bad"][0]["key"] == "0"


def test_inspect_takes_shards_or_an_experiment(folder: Path, root: Path, capsys: Capture) -> None:
    assert main(["data", "inspect", "shards", "--json", "--image-size", "32"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["samples"], told["bad"], told["lengths"]["image_size"]) == (10, 1, 32)
    assert Path("inspect.html").exists()

    experiment = yaml.safe_load((root / "configs" / "quickstart.yaml").read_text())
    Path("vocab.txt").write_text("[UNK]\nred\n")
    experiment["data"] = {"sources": [{"name": "mine", "shards": "shards"}], "tokenizer": "vocab.txt"}
    Path("mine.yaml").write_text(yaml.safe_dump(experiment))
    assert main(["data", "inspect", "mine.yaml", "--json", "--page", "b.html", "--set", "model.text_length=5"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["sources"][0]["name"], told["text_unit"], told["lengths"]["text_length"]) == ("mine", "word pieces", 5)
    assert told["tokens_per_sample"]["packed"] == 1 + 64 + 1


def test_convert_says_what_it_left_out(folder: Path, capsys: Capture) -> None:
    Image.new("RGB", (20, 10)).save("a.png")
    Path("t.csv").write_text("image,caption\na.png,black\nb.png,missing\n")
    assert main(["data", "convert", "t.csv", "out"]) == 2
    assert "1 of 2 rows are left out, more than" in capsys.readouterr().err
    assert main(["data", "convert", "t.csv", "out", "--missing-limit", "0.5", "--vocabulary", "100"]) == 0
    told = capsys.readouterr().out
    assert "1 samples of kind paired in 1 shards in out" in told
    assert "1 rows left out, listed in out/left_out.jsonl; the first is row 1: b.png: No such file" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nowhere/*.tar"], "error: PATH: nowhere/*.tar: found no shard"),
        (["inspect", "shards", "--set", "seed=1"], "--set changes an experiment, but PATHS are shards; leave it out"),
        (["inspect", "a.yaml", "shards"], "an experiment stands alone: give one YAML file, or shards"),
        (["verify", "a.yaml", "--kind", "text"], "--kind is for shards"),
        (["inspect", "shards", "--page", "none/a.html"], "error: none/a.html: cannot write the page"),
        (["convert", "shards", "out"], "error: shards: found neither a table (csv, tsv, jsonl, parquet) nor folders"),
    ],
)
def test_mistakes(arguments: list[str], message: str, folder: Path, capsys: Capture) -> None:
    assert main(["data", *arguments]) == 2
    assert message in capsys.readouterr().err
