"""A user's mistakes: each one line that names the place, what was found and what to do, and exit code 2."""

import tarfile
from pathlib import Path

import pytest

from m3ae_scale.cli.main import main

MISTAKES = {
    "missing shard": (["data.sources.0.shards=data/none.tar"], ["pairs", "data/none.tar"]),
    "a tar that is no tar": (["data.sources.0.shards=not.tar"], ["not.tar", "no tar"]),
    "text as an image source": (["data.sources.1.shards=data/train/text"], ["images", "kind image needs images"]),
    "text file as an image source": (["data.sources.1.shards=data/vocab.txt"], ["data/vocab.txt", "no tar"]),
    "empty shard": (["data.sources.0.shards=empty.tar"], ["empty.tar"]),
    "missing vocabulary": (["data.tokenizer=none.txt"], ["none.txt", "vocab"]),
    "unknown key": (["model.pacth=8"], ["model.pacth", 'did you mean "patch"?']),
    "unknown section": (["modle.size=base"], ["--set", 'did you mean "model"?']),
    "tensor parallel that does not divide heads": (["parallel.tensor=3"], ["does not divide model.encoder.heads (4)"]),
    "tensor parallel without ranks": (["parallel.tensor=2"], ["does not divide the 1 ranks"]),
    "global batch that does not divide": (["batch.global=13"], ["batch.global 13", "12 or 15"]),
    "DeepSpeed JSON against the batch": (
        ["engine.overrides.train_batch_size=64"],
        ["train_batch_size is 64", "batch.global is 12"],
    ),
    "unknown DeepSpeed key": (["engine.overrides.zero_optimisation.stage=3"], ["zero_optimization"]),
    "auto": (["engine.overrides.gradient_accumulation_steps=auto"], ["auto"]),
    "no such DeepSpeed JSON": (["engine.deepspeed=zero9"], ["zero9", "zero3_fp32"]),
    "unknown size": (["model.size=bse"], ["bse", "tiny", "22b"]),
    "a length without unit": (["train.length=100"], ["train.length", "epochs"]),
    "an unknown kernel": (["kernels.attention=flsh"], ["kernels.attention", "flsh"]),
    "a kernel for other hardware": (["kernels.attention=varlen"], ["kernels.attention", "varlen", "padded"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_line_and_exit_code_2(
    mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (place / "not.tar").write_text("hello\n")
    tarfile.open(place / "empty.tar", "w").close()
    changes, said = MISTAKES[mistake]
    arguments = ["pretrain", "tiny.yaml", "--set", "name=mistake"]
    code = main(arguments + [f"--set={change}" for change in changes])
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert code == 2
    assert len(errors) == 1, errors
    for words in said:
        assert words in errors[0], errors[0]


def test_every_rank_ends_and_one_speaks(command) -> None:  # type: ignore[no-untyped-def]
    arguments = ["pretrain", "tiny.yaml", "--nproc", "2", "--set", "name=mistake"]
    done = command(*arguments, "--set", "data.sources.0.shards=data/none.tar", code=2)
    assert done.stderr.count("error:") == 1 and "Traceback" not in done.stderr


def test_another_vocabulary_on_resume(trained: Path, place: Path, command) -> None:  # type: ignore[no-untyped-def]
    words = (place / "data" / "vocab.txt").read_text().splitlines()
    (place / "fewer.txt").write_text("\n".join(words[:-50]) + "\n")
    arguments = ["pretrain", "tiny.yaml", "--set", "name=whole", "--set", "train.length=30 steps", "--resume"]
    done = command(*arguments, "--set", "data.tokenizer=fewer.txt", code=2)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"vocabulary of {len(words)} words" in error and str(len(words) - 50) in error


def test_a_run_is_not_overwritten(trained: Path, command) -> None:  # type: ignore[no-untyped-def]
    done = command("pretrain", "tiny.yaml", "--set", "name=whole", code=2)
    assert "holds a run already" in done.stderr and "--resume" in done.stderr
