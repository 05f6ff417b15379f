"""The verbs as a user meets them: quick help, one line per mistake, exit codes that scripts can trust."""

import json
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from m3ae_scale.cli.main import VERBS, main
from m3ae_scale.config import load_experiment

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def quickstart(root: Path) -> str:
    return str(root / "configs" / "quickstart.yaml")


def test_every_verb_has_help(capsys: Capture) -> None:
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"Usage: m3ae-scale {verb}")


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "--help"], ["config", "explain", "--help"]])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    program = (
        f"import sys; from m3ae_scale.cli.main import main; code = main({arguments!r}); "
        "sys.exit(code or any(m in sys.modules for m in ('torch', 'deepspeed', 'pydantic', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trin"], "error: No such command 'trin'. See m3ae-scale --help."),
        (["pretrain"], "error: Missing argument 'EXPERIMENT'. See m3ae-scale pretrain --help."),
        (["pretrain", "none.yaml"], "error: none.yaml: cannot read the experiment (No such file or directory)"),
        (["pretrain", "QUICK", "--nproc", "0"], "error: Invalid value for '--nproc'"),
        (["pretrain", "QUICK", "--set", "batch.globl=3"], 'error: --set: unknown key "batch.globl"; did you mean'),
        (["pretrain", "QUICK", "--nproc", "2", "--set", "batch.global=100"], "error: --set: batch.global 100 does not"),
        (
            ["pretrain", "QUICK", "--nproc", "3", "--set", "parallel.tensor=2"],
            "error: parallel.tensor 2 does not divide the 3 ranks; start 2 or 4 ranks",
        ),
        (["config", "explain", "QUICK", "--set", "batch.micro=8"], "batch.micro is 8; make them equal, as with"),
        (
            ["config", "explain", "QUICK", "--set", "engine.deepspeed=zero5"],
            "error: engine.deepspeed: found no 'zero5'",
        ),
        (["page", "nowhere"], "error: nowhere: no experiment.yaml there"),
        (["data", "synthesize", "x", "--image-size", "9", "8"], "error: image size: found 9 to 8 pixels"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    quickstart: str,
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([quickstart if argument == "QUICK" else argument for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_the_same_through_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "m3ae_scale.cli.main", "config", "show", "none.yaml"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: none.yaml: ")
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error(quickstart: str) -> None:
    command = f"{sys.executable} -m m3ae_scale.cli.main config show {quickstart} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_nproc_must_agree_with_the_launcher(quickstart: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", quickstart, "--nproc", "2"]) == 2
    assert "found 2, but the launcher started 4 ranks" in capsys.readouterr().err


def test_explain_names_the_place_of_every_value(quickstart: str, capsys: Capture) -> None:
    arguments = ["config", "explain", quickstart, "--nproc", "2", "--set", "batch.global=256"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "# 2 ranks = tensor 1 x data 2, fp32" in text
    assert "# 256 samples a step = micro 64 x accumulation 2 x data 2" in text
    places = {line.split(":")[0].strip(' "'): line.partition("  # ")[2] for line in text.splitlines()}
    assert places["train_batch_size"] == "--set: batch.global"
    assert places["stage"].endswith("zero3_fp32.json")
    assert places["stage3_param_persistence_threshold"].endswith("engine.overrides")

    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    without_comments = "\n".join(line.partition("  # ")[0] for line in text.splitlines()[2:])
    assert json.loads(without_comments) == document["config"]
    assert document["plan"]["accumulation"] == 2
    assert document["provenance"]["gradient_clipping"].endswith("optimizer.gradient_clipping")


def test_show_prints_an_experiment_that_loads(quickstart: str, capsys: Capture, tmp_path: Path) -> None:
    assert main(["config", "show", quickstart, "--set", "seed=7"]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert load_experiment(shown)[0] == load_experiment(quickstart, ["seed=7"])[0]


def test_sizes_lists_every_size(capsys: Capture) -> None:
    assert main(["sizes"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[1:-1]][:4] == ["tiny", "small", "base", "large"]
    assert "302,311,424" in rows[4]
    assert max(map(len, rows)) <= 140


def test_synthesize_then_index(
    quickstart: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    numbers = ["--samples", "12", "--image-only", "4", "--text-only", "6", "--validation", "6", "--processes", "1"]
    assert main(["data", "synthesize", "data/quickstart", *numbers]) == 0
    assert "in data/quickstart" in capsys.readouterr().out
    with tarfile.open("data/quickstart/train/paired/00000.tar") as tar:
        assert len(tar.getnames()) == 12 * 3
    assert main(["data", "index", quickstart]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pairs: 12 samples in 1 shards, 12 with an image, 12 with a text",
        "images: 4 samples in 1 shards, 4 with an image, 0 with a text",
        "texts: 6 samples in 1 shards, 0 with an image, 6 with a text",
        "held-out: 6 samples in 1 shards, 6 with an image, 6 with a text",
    ]


def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    program = (  # a shell that starts the tests in the background has them ignore SIGINT
        "import os, signal, sys, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from m3ae_scale.cli import main as cli; import m3ae_scale.config as config; "
        "config.load_experiment = lambda *a: (os.kill(os.getpid(), signal.SIGINT), time.sleep(9)); "
        "sys.exit(cli.main(['config', 'show', 'x']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_the_end_of_a_file_is_not_taken_for_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*arguments: object) -> None:
        raise EOFError("of a pipe")

    monkeypatch.setattr("m3ae_scale.config.load_experiment", closed)
    with pytest.raises(EOFError, match="of a pipe"):
        main(["config", "show", "x"])


@pytest.mark.parametrize(
    ("ending", "code"), [("return 0", 0), ("return 2", 2), ("raise SystemExit(75)", 75), ("raise OSError('gone')", 1)]
)
def test_threads_of_torch_do_not_spoil_the_exit_code(ending: str, code: int) -> None:
    text = f"""
import atexit, sys, threading, time
from datetime import timedelta
from m3ae_scale.cli import main as cli

class Late:
    def __del__(self, sleep=time.sleep):
        sleep(21)  # an interpreter that is taken apart lets other threads have a go meanwhile

def verb(argv):
    from torch.distributed import HashStore
    sys.late = Late()
    wait = lambda: HashStore().wait(["never"], timedelta(seconds=20))  # as Gloo's threads: torch's code, then Python's
    threading.Thread(target=wait, daemon=True).start()
    atexit.register(print, "registered")
    print("buffered", end=" ")
    {ending}

cli.main = verb
cli.program()
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout == "buffered registered\n"
    assert done.stderr == "" or (code == 1 and done.stderr.endswith("OSError: gone\n"))


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_line_is_one_write(unbuffered: str) -> None:
    program = (
        "import sys; from m3ae_scale.cli import main as cli; "
        "cli.main = lambda argv: [print('half', 'a line', file=f) for f in (sys.stdout, sys.stderr)] and 0; "
        "cli.program()"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # each write is a packet
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    subprocess.run([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=environ, check=True)
    assert [ours.recv(99), ours.recv(99)] == [b"half a line\n"] * 2
