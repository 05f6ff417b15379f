"""What a run meets: kill -9, a full disk, the wrong checkpoint. Nothing saved is lost, and what happened is said."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from on_ranks import CLIP, LR
from processes import HERE, run_ranks
from tiny import experiment, plain_curve

from m3ae_scale.training.provenance import provenance

KILLS = int(os.environ.get("CHECKPOINT_KILLS", "6"))  # `make checkpoint-faults` sets 200


@pytest.mark.timeout(120 + 40 * KILLS)
def test_killed_at_random_moments(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "kill_while_saving.py"), str(tmp_path), "--ranks=2", f"--kills={KILLS}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    events = result["events"]
    assert len(events) == KILLS
    assert all(event["lost"] <= 1 for event in events), "more than the step since the last checkpoint was lost"
    assert result["steps"] > KILLS // 4, "the run hardly got on"
    assert result["differing"] == []
    if output := os.environ.get("CHECKPOINT_FAULTS_OUTPUT"):
        write_down(Path(output), events, result["steps"])


def write_down(path: Path, events: list[dict[str, Any]], steps: int) -> None:
    """Write what happened as a Markdown table."""
    facts = provenance()
    kinds = Counter((event["during"], event["half"], event["lost"]) for event in events)
    victims = Counter("all ranks at once" if event["killed"] == "all" else "one rank" for event in events)
    lines = [
        f"# {len(events)} times kill -9 of a run that saves after every step",
        "",
        f"Two ranks, ZeRO-2; one was killed {victims['one rank']} times, both {victims['all ranks at once']} times.",
        "Promised: what was said to be saved is there and good; at most the step since the last checkpoint is lost.",
        f"The run reached step {steps}; its state was then equal, bit for bit, to that of a run that nobody killed.",
        "",
        f"`make checkpoint-faults`, {facts['date']}, gloo on {facts['hardware']['cpu']}, commit",
        f"{facts['git']['commit'] if facts['git'] else 'unknown'}.",
        "",
        "| killed while | left a half-written folder | steps lost | times |",
        "|---|---|---|---|",
    ]
    for (during, half, lost), times in sorted(kinds.items()):
        lines.append(f"| {during} | {'yes' if half else 'no'} | {lost} | {times} |")
    path.write_text("\n".join(lines) + "\n")


def held_against_plain(curve: list[float]) -> float:
    reference = plain_curve(experiment(), len(curve), LR, CLIP)
    return max(abs(ours - theirs) / theirs for ours, theirs in zip(curve, reference, strict=True))


def test_a_rank_that_cannot_write_ends_nothing_but_the_checkpoint(tmp_path: Path) -> None:
    result = run_ranks(2, "on_checkpoints:meet_a_full_disk", {"folder": str(tmp_path), "limit": 100_000})
    assert len(set(result["refusals"])) == 1, "all ranks are told the same"
    assert result["refusals"][0].startswith("rank 1: ") and "File too large" in result["refusals"][0]
    assert result["after"] == ["step_00000002"] and result["good"].endswith("step_00000002")
    assert result["again"].endswith("step_00000004")
    assert held_against_plain(result["curve"]) <= 1e-5


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for one checkpoint of the tiny model."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.decode().strip()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_ends_nothing_but_the_checkpoint(small_disk: Path) -> None:
    result = run_ranks(2, "on_checkpoints:meet_a_full_disk", {"folder": str(small_disk)})
    assert all("No space left on device" in said for said in result["refusals"])
    assert result["after"] == ["step_00000002"] and result["good"].endswith("step_00000002")
    assert result["again"].endswith("step_00000004")
    assert held_against_plain(result["curve"]) <= 1e-5


def test_what_does_not_fit_is_told_in_one_line(tmp_path: Path) -> None:
    vocabulary, depth, shape, damaged, none_good, none = run_ranks(
        2, "on_checkpoints:load_what_does_not_fit", {"folder": str(tmp_path)}
    )
    assert "trained with a vocabulary of 101 words, this run's data.tokenizer has 100" in vocabulary
    assert "has no decoder.transformer.blocks.2.norm1.weight, which this run's model has" in depth
    assert "decoder.transformer.blocks.0.mlp.fc1.weight is (256, 64) there, (128, 64) in this run's model" in shape
    assert "exp_avg-00001.safetensors: 100 bytes, " in damaged and "take an older checkpoint" in damaged
    assert "all its 1 checkpoints are damaged; restore one, or begin another run" in none_good
    assert none == "None"
    assert all("\n" not in line for line in (vocabulary, depth, shape, damaged, none_good))
