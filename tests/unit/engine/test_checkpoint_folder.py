"""The checkpoints of a run: which is the newest, which are kept, and what a crash leaves behind."""

import math
import os
import random
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_checkpoint import SHAPES, make_checkpoint

from m3ae_scale.engine.checkpoint.folder import (
    begin,
    checkpoints_folder,
    find_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    prune_checkpoints,
)
from m3ae_scale.engine.checkpoint.format import read_manifest, require_good
from m3ae_scale.errors import InputError


def names(run: Path) -> list[str]:
    return sorted(path.name for path in checkpoints_folder(run).iterdir())


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(InputError, match="no checkpoint there"):
        find_checkpoint(tmp_path)


def test_the_newest_is_the_last_one_saved_not_the_highest_step(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, 100)
    make_checkpoint(tmp_path, 200)
    rolled_back = make_checkpoint(tmp_path, 150)  # after the run went back to step 100
    os.utime(rolled_back, (0, 0))  # and whatever a clock says
    assert latest_checkpoint(tmp_path) == rolled_back
    again = make_checkpoint(tmp_path, 200)
    assert again.name == "step_00000200.2"
    assert latest_checkpoint(tmp_path) == again


def test_what_dead_runs_left_is_swept_and_never_read(tmp_path: Path) -> None:
    good = make_checkpoint(tmp_path, 1)
    stale = [begin(tmp_path, 2)]
    (stale[0] / "weights-00001.safetensors").write_bytes(b"half")
    complete = begin(tmp_path, 3)  # sweeps the one before
    for file in good.iterdir():  # complete, but never renamed: it does not exist
        (complete / file.name).write_bytes(file.read_bytes())
    assert not stale[0].exists()
    assert latest_checkpoint(tmp_path) == good
    last = begin(tmp_path, 3)
    assert not complete.exists()
    assert names(tmp_path) == sorted([good.name, last.name])


@given(
    steps=st.lists(st.integers(1, 12), min_size=1, max_size=10, unique=True).map(sorted),
    keep=st.integers(1, 4),
    every=st.integers(0, 4),
    scores=st.lists(st.floats(0, 1), min_size=10, max_size=10),
)
def test_pruning_keeps_the_last_the_nth_and_the_best(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], keep: int, every: int, scores: list[float]
) -> None:
    run = tmp_path_factory.mktemp("run")
    loss = dict(zip(steps, scores, strict=False))
    for step in steps:
        make_checkpoint(run, step, {"a": (1,)})
    removed = prune_checkpoints(run, keep, every, loss | {99: -1.0, steps[0]: math.nan} if len(steps) > 1 else loss)
    kept = {manifest.step for _, manifest in list_checkpoints(run) if manifest}
    assert kept | {int(path.name[5:]) for path in removed} == set(steps)
    assert set(steps[-keep:]) <= kept
    assert all(step in kept for step in steps if every and step % every == 0)
    best = min(steps[1:], key=loss.__getitem__) if len(steps) > 1 else steps[0]  # a loss of nan is none
    assert any(loss[step] == loss[best] for step in kept)
    assert len(kept) <= keep + 1 + sum(1 for step in steps if every and step % every == 0)


def test_pruning_never_counts_a_damaged_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step)
    newest = checkpoints_folder(tmp_path) / "step_00000003"
    (newest / "weights-00001.safetensors").write_bytes(b"cut")
    prune_checkpoints(tmp_path, keep=1)
    assert names(tmp_path) == ["step_00000002", "step_00000003"]  # the last good one, and the evidence


def test_killed_while_saving_at_random_moments(tmp_path: Path) -> None:
    """Kill -9 of a process that saves and prunes without pause: what it said was saved is there, and is good."""
    rng = random.Random(0)
    during = 0
    for _ in range(40):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                step = 1 + max((m.step for _, m in list_checkpoints(tmp_path) if m), default=0)
                while True:
                    make_checkpoint(tmp_path, step)
                    os.write(writer, step.to_bytes(4, "little"))
                    prune_checkpoints(tmp_path, keep=2)
                    step += 1
            finally:
                os._exit(1)
        os.close(writer)
        time.sleep(rng.uniform(0.005, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = b""
        while data := os.read(reader, 2**16):
            said += data
        os.close(reader)
        during += any(".tmp-" in name for name in names(tmp_path)) if checkpoints_folder(tmp_path).exists() else 0
        for path, manifest in list_checkpoints(tmp_path):
            assert manifest is not None and require_good(path).shapes == SHAPES
        if said:
            newest = latest_checkpoint(tmp_path)
            assert newest is not None
            assert read_manifest(newest).step >= int.from_bytes(said[-4:], "little")
    assert during > 5, "hardly any kill came while a checkpoint was being written"
