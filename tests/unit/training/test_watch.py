"""A process that makes no progress writes its stacks and ends; one that does, does not."""

import json
import os
import subprocess
import sys
from pathlib import Path

from m3ae_scale.errors import EXIT_HUNG
from m3ae_scale.training.watch import Watch, describe_hang

HANG = """
import sys, time
from pathlib import Path
from m3ae_scale.training.watch import Watch
def wait_for_what_never_comes():
    time.sleep(60)
with Watch(Path(sys.argv[1]), 0, hang_after=5.0) as watch:
    for step in range(20):
        watch.at(f"step {step}, forward pass")
        time.sleep(0.1)
    watch.at("step 20, waiting for data")
    wait_for_what_never_comes()
"""


def test_a_hang_ends_the_process_with_its_stacks(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", HANG, str(tmp_path)], capture_output=True, text=True, timeout=50)
    assert done.returncode == EXIT_HUNG
    assert done.stderr == (
        f"hung: no progress for 5 s (guard.hang_after): all ranks are at step 20, waiting for data; "
        f"their stacks: {tmp_path}\n"
    )
    facts, stacks = (tmp_path / "rank_00000.txt").read_text().split("\n", 1)
    assert json.loads(facts)["places_said"] == 21
    assert "in wait_for_what_never_comes" in stacks


def test_a_block_that_ends_in_time_leaves_nothing(tmp_path: Path) -> None:
    with Watch(tmp_path / "hang", 0, hang_after=30.0) as watch:
        watch.at("step 1")
    assert not (tmp_path / "hang").exists()


def test_the_rank_that_has_said_least_is_behind(tmp_path: Path) -> None:
    for rank, said in enumerate((7, 6, 7)):
        facts = {"rank": rank, "places_said": said, "place": f"place {said}", "host": f"node{rank}"}
        (tmp_path / f"rank_{rank:05d}.txt").write_text(json.dumps(facts) + "\nstacks\n")
    stale = tmp_path / "rank_00009.txt"  # of a hang of yesterday
    stale.write_text(json.dumps({"rank": 9, "places_said": 1, "place": "-", "host": "node9"}) + "\n")
    os.utime(stale, (0, 0))
    said = describe_hang(tmp_path, 5.0)
    assert "rank 1 on node1 is behind, at place 6; the others are at place 7" in said and "rank 9" not in said
