"""The quarantine: written once, judged by share, and a small data set does not stop at one bad sample."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.data.quarantine import FEWEST_TO_STOP, Bad, Quarantine, read
from m3ae_scale.errors import InputError


def bad(number: int, source: str = "pairs", shard: str = "0.tar") -> Bad:
    return Bad(source, shard, f"{number:06d}", "image of zero bytes")


@given(st.lists(st.booleans(), max_size=400), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
def test_it_stops_exactly_when_the_share_is_past_the_limit(samples: list[bool], limit: float) -> None:
    quarantine, met = Quarantine(limit), 0
    for tried, is_bad in enumerate(samples, 1):
        met += is_bad
        too_many = is_bad and met / tried > limit and (met >= FEWEST_TO_STOP or limit == 0)
        if too_many:
            with pytest.raises(InputError):
                quarantine.judge([bad(tried)], {"pairs": 1})
            return
        quarantine.judge([bad(tried)] if is_bad else [], {"pairs": 1})
    assert quarantine.counts == Counter({"pairs": met} if met else {})


def test_few_bad_samples_over_and_over_do_not_stop_a_small_data_set() -> None:
    quarantine = Quarantine(0.01)
    for _ in range(1000):
        quarantine.judge([bad(1)], {"pairs": 10})
    assert quarantine.counts == {"pairs": 1}


def test_sources_are_judged_apart() -> None:
    quarantine = Quarantine(0.1)
    quarantine.judge([], {"large": 10_000})
    with pytest.raises(InputError, match=r"^data source small: 30 of 30 samples read .* \(0.1\)"):
        quarantine.judge([bad(n, "small") for n in range(30)], {"small": 30})


def test_the_verdict_names_shards_reason_and_record(tmp_path: Path) -> None:
    quarantine = Quarantine(0.1, tmp_path, rank=3)
    spoiled = [bad(n, shard=f"{0 if n < 20 else n}.tar") for n in range(25)]
    with pytest.raises(
        InputError, match=r"most are in 0.tar \(20\), .* image of zero bytes; all are in .*-rank3.jsonl"
    ):
        quarantine.judge(spoiled, {"pairs": 30})


def test_ranks_and_resumed_runs_do_not_repeat_a_line(tmp_path: Path) -> None:
    for rank in (0, 1, 0, 2):
        quarantine = Quarantine(1.0, tmp_path / "run", rank)
        quarantine.judge([bad(1), bad(1), bad(10 + rank)], {"pairs": 3})
    lines = [line for path in (tmp_path / "run").iterdir() for line in path.read_text().splitlines()]
    assert sorted(json.loads(line)["key"] for line in lines) == ["000001", "000010", "000011", "000012"]


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    quarantine = Quarantine(1.0, tmp_path)
    quarantine.judge([bad(1), bad(2)], {"pairs": 3})
    path = tmp_path / "quarantine-rank0.jsonl"
    path.write_text(path.read_text()[:-20])
    assert read(path) == [bad(1)]
