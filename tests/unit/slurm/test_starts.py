"""When a job gives up: after starts in a row that brought no newer checkpoint, and not before."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.errors import InputError
from m3ae_scale.slurm.starts import FILE, idle_starts, note_start

NAMES = st.sampled_from([None, "step_00000005", "step_00000010"])


def rows(*starts: tuple[str, str | None]) -> list[dict]:
    return [{"submission": submission, "checkpoint": checkpoint} for submission, checkpoint in starts]


def test_starts_of_this_submission_at_this_checkpoint_count() -> None:
    assert idle_starts(rows(("1", None), ("1", None)), "1", None) == 2
    assert idle_starts(rows(("1", None), ("1", None)), "1", "step_00000005") == 0
    assert idle_starts(rows(("1", "a"), ("1", "b"), ("1", "b")), "1", "b") == 2
    assert idle_starts(rows(("1", "a"), ("2", "a")), "1", "a") == 0


@given(st.lists(st.tuples(st.sampled_from("12"), NAMES)), st.sampled_from("12"), NAMES)
def test_the_count_is_the_length_of_the_last_equal_stretch(
    starts: list[tuple[str, str | None]], submission: str, newest: str | None
) -> None:
    count = idle_starts(rows(*starts), submission, newest)
    assert starts[len(starts) - count :] == [(submission, newest)] * count
    assert count == len(starts) or starts[-count - 1] != (submission, newest)


def test_each_start_is_written_down_until_the_limit(tmp_path: Path) -> None:
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "0"}
    for restart in range(3):
        note_start(tmp_path / "run", {**job, "SLURM_RESTART_COUNT": str(restart)}, nodes=2, limit=3)
    with pytest.raises(InputError, match="3 starts without a checkpoint so far have gained nothing, and job 7"):
        note_start(tmp_path / "run", job, nodes=2, limit=3)
    lines = (tmp_path / "run" / FILE).read_text().splitlines()
    assert [json.loads(line)["restart"] for line in lines] == [0, 1, 2]
    note_start(tmp_path / "run", {"SLURM_JOB_ID": "8"}, nodes=2, limit=3)  # submitted anew


def test_the_jobs_of_a_chain_count_together(tmp_path: Path) -> None:
    for number in "123":
        note_start(tmp_path, {"SLURM_JOB_ID": number, "M3AE_CHAIN": "tiny-1a2b"}, nodes=1, limit=3)
    with pytest.raises(InputError):
        note_start(tmp_path, {"SLURM_JOB_ID": "4", "M3AE_CHAIN": "tiny-1a2b"}, nodes=1, limit=3)


def test_a_line_cut_by_a_crash_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"submission": "7", "checkp\n')
    assert note_start(tmp_path, {"SLURM_JOB_ID": "7"}, nodes=1, limit=1) is None
