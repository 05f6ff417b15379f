import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from m3ae_scale.bench.results import append_row, cell_key, cells_done, read_rows
from m3ae_scale.errors import InputError


def test_rows_come_back_with_their_provenance(tmp_path: Path) -> None:
    file = tmp_path / "new" / "rows.jsonl"
    append_row(file, "throughput", {"size": "tiny"}, {"step_seconds": 0.5, "mfu": math.nan})
    append_row(file, "scaling", {"size": "tiny"}, {}, status="out of memory")
    first, second = read_rows(file)
    assert (first["step_seconds"], first["mfu"], first["status"]) == (0.5, None, "ok")
    assert second["status"] == "out of memory"
    assert first["provenance"]["hardware"]["cores"] >= 1
    assert read_rows(file, "scaling") == [second]


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append_row(file, "x", {"n": 1}, {}, source={})
    with file.open("a") as torn:
        torn.write('{"bench": "x", "ce')
    append_row(file, "x", {"n": 2}, {}, source={})
    assert [row["cell"]["n"] for row in read_rows(file)] == [1, 2]


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: append_row(file, "x", {"n": n}, {"text": "y" * 5000}, source={}), range(64)))
    assert sorted(row["cell"]["n"] for row in read_rows(file)) == list(range(64))


def test_a_cell_is_done_whatever_the_order_of_its_keys_and_its_status(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    assert cells_done(file, "x") == set()
    append_row(file, "x", {"a": 1, "b": (2, 3)}, {}, status="out of memory", source={})
    assert cell_key({"b": [2, 3], "a": 1}) in cells_done(file, "x")
    assert cells_done(file, "y") == set()


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read results .*\.jsonl"):
        read_rows(tmp_path / "none.jsonl")
