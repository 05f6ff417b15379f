"""The JSON lines: what a killed and resumed run leaves behind must read as one run."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.training.metrics_file import append_metrics, mark_resume, read_metrics, trained_seconds


def test_parts_of_a_step_are_one_row_and_the_last_word_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, 10, {"loss": 2.0, "lr": 0.1})
    append_metrics(path, 10, {"validation_loss": 3.0})
    append_metrics(path, 10, {"loss": 1.0})
    assert read_metrics(path) == [{"step": 10, "loss": 1.0, "lr": 0.1, "validation_loss": 3.0}]


def test_a_torn_line_is_left_out_and_spoils_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, 10, {"loss": 2.0})
    whole = path.read_bytes()
    for cut in range(1, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        mark_resume(path, 10)
        append_metrics(path, 20, {"loss": 1.0})
        assert [row["step"] for row in read_metrics(path)] == [10, 20]


def test_a_value_that_is_not_finite_stays_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, 1, {"loss": math.nan, "gradient_norm": math.inf})
    json.loads(path.read_text(), parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    assert math.isnan(read_metrics(path)[0]["loss"])


# Lives of a run: each resumes at a step it had reached (a checkpoint), and logs at an interval of its own.
@given(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 30), st.floats(0, 1)), min_size=1, max_size=5))
def test_resumed_lives_read_as_the_one_that_happened(tmp_path_factory, lives):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    reached, expected = 0, {}
    for life, (every, length, back) in enumerate(lives):
        start = int(reached * back)
        if life:
            mark_resume(path, start)
        expected = {step: row for step, row in expected.items() if step <= start}
        for step in range(start + 1, start + length + 1):
            if step % every == 0:
                row = {"loss": life + step / 100, "seconds": float(step)}
                append_metrics(path, step, row)
                expected[step] = {"step": step, **row}
        reached = start + length
    if expected:
        assert read_metrics(path) == [expected[step] for step in sorted(expected)]
    for step in range(reached + 1):
        assert trained_seconds(path, step) == max((s for s in expected if s <= step), default=0)
