import json
from dataclasses import asdict
from pathlib import Path

import pytest

from m3ae_scale.bench import cells as cells_module
from m3ae_scale.bench.cells import run_cells, table
from m3ae_scale.bench.grid import ThroughputCell, cell_of, product, read_grid
from m3ae_scale.bench.results import append_row, read_rows
from m3ae_scale.bench.synthetic import batches, caption_lengths
from m3ae_scale.config import ModelConfig
from m3ae_scale.errors import InputError


def test_a_grid_is_the_union_of_its_products(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        "grids:\n  - {size: [tiny, small], micro_batch: [8, 16]}\n"
        "  - {size: tiny, micro_batch: 8, recompute: [none, full]}\n"
    )
    cells = read_grid(path)
    assert [(c.size, c.micro_batch, c.recompute) for c in cells] == [
        ("tiny", 8, "none"), ("tiny", 16, "none"), ("small", 8, "none"), ("small", 16, "none"), ("tiny", 8, "full"),
    ]  # fmt: skip
    assert all(cell_of(json.dumps(asdict(cell))) == cell for cell in cells)


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"sise": ["tiny"]}, "unknown key 'sise'"),
        ({"size": ["tony"]}, "size: unknown 'tony'"),
        ({"micro_batch": ["8"]}, "micro_batch: found '8', expected int"),
        ({"micro_batch": [0]}, "expected at least 1"),
        ({"devices": [3], "tensor_parallel": [2]}, "does not divide"),
        ({"zero_stage": [1], "offload": [1]}, "2 or 3 with offload"),
        ({"zero_stage": [2], "offload": [0.5]}, "expected 0 or 1, or a share between at ZeRO stage 3"),
        ({"zero_stage": [3], "offload": [2]}, "offload: found 2, expected 0 or 1"),
        ({"offload": [True]}, "offload: found True, expected float"),
        ({"precision": ["fp16"]}, "expected bf16 or fp32"),
    ],
)
def test_a_mistake_is_one_line(choices: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        product(choices, "the options")


def test_out_of_memory_is_a_row_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, asked = tmp_path / "rows.jsonl", []

    def launch(devices: int, command: list[str]) -> int:
        cell = cell_of(command[-2])
        asked.append(cell.micro_batch)
        if cell.micro_batch == 16:
            return cells_module.EXIT_MEMORY
        append_row(output, "throughput", asdict(cell), dict.fromkeys(NUMBERS, 1.0), source={})
        return 0

    monkeypatch.setattr(cells_module, "launch_local", launch)
    cells = product({"micro_batch": [8, 16, 32]}, "here")
    assert run_cells(cells, output) == 0
    assert [row["status"] for row in read_rows(output)] == ["ok", "out of memory", "ok"]
    run_cells(cells, output)
    assert asked == [8, 16, 32]  # none of them again
    lines = list(table(cells, output))
    assert len(lines) == 5 and "out of memory" in lines[3]


NUMBERS = (
    "step_seconds", "step_seconds_p10", "step_seconds_p90", "mfu_ceiling", "mfu_datasheet", "samples_per_second",
    "tokens_per_second", "peak_memory_bytes", "watts",
)  # fmt: skip


def test_captions_are_about_as_long_as_those_of_cc12m() -> None:
    lengths = caption_lengths(50_000, 64)
    assert 19 <= lengths.mean() <= 21 and lengths.max() == 64 and lengths.min() == 3


@pytest.mark.parametrize("text", [True, False])
def test_batches_hide_three_quarters(text: bool) -> None:
    model = ModelConfig.model_validate({"size": "tiny"})
    first, second = batches(model, 500, 4, 2, text=text)
    assert first.samples == 4 and len(first.visible_patches) == 4 * 64
    assert bool(first.has_text.all()) is text
    assert first.tokens != second.tokens or not text


def test_the_defaults_are_a_cell() -> None:
    assert product({}, "here") == [ThroughputCell()]
