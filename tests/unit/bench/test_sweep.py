"""A sweep must come out as the cells that its YAML says, each an experiment; mistakes as one line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from m3ae_scale.bench import run
from m3ae_scale.bench.results import append_row
from m3ae_scale.bench.run import done_cells, open_cells, run_sweep, states
from m3ae_scale.bench.sweep import choose, read_sweep
from m3ae_scale.errors import EXIT_STOPPED, InputError

ROOT = Path(__file__).parents[3]
SWEEP: dict[str, Any] = {
    "name": "try",
    "experiment": str(ROOT / "configs" / "quickstart.yaml"),
    "set": {"engine.overrides": {"train_micro_batch_size_per_gpu": None}, "batch.global": 8},
    "sizes": {"nano": {"model.encoder": {"dim": 16, "depth": 1, "heads": 2, "mlp_dim": 32}, "optimizer.lr": 1e-2}},
    "layouts": {"zero1": {"engine.deepspeed": "zero1_fp32"}},
    "grids": [
        {"sizes": ["nano", "small"], "samples": [80, 160]},
        {"sizes": ["nano"], "samples": [80], "devices": [1, 2]},
        {"sizes": ["nano"], "samples": [80], "devices": [1, 2], "per_device": 8},
        {"sizes": ["nano"], "samples": [80], "layouts": ["zero1"]},
    ],
}


def written(folder: Path, **changed: Any) -> Path:
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | changed, sort_keys=False))
    return folder / "sweep.yaml"


def test_grids_become_cells_each_once(tmp_path: Path) -> None:
    _, cells = read_sweep(written(tmp_path))
    assert [(c.number, c.size, c.layout, c.samples, c.devices, c.global_batch) for c in cells] == [
        (1, "nano", "plain", 80, 1, 8),
        (2, "nano", "plain", 160, 1, 8),
        (3, "small", "plain", 80, 1, 8),
        (4, "small", "plain", 160, 1, 8),
        (5, "nano", "plain", 80, 2, 8),  # strong scaling
        (6, "nano", "plain", 160, 2, 16),  # weak: a batch, and samples, for each device
        (7, "nano", "zero1", 80, 1, 8),
    ]
    assert len({cell.name for cell in cells}) == len(cells)


def test_a_cell_is_an_experiment_that_trains_to_its_own_end(tmp_path: Path) -> None:
    _, cells = read_sweep(written(tmp_path, warmup=0.2))
    nano, small, zero1 = (cells[n].load()[0] for n in (0, 3, 6))
    assert nano.model.encoder.dim == 16 and nano.optimizer.lr == 1e-2
    assert small.model.size == "small" and small.optimizer.lr == 2e-3
    assert (small.train.length.count, small.train.warmup.count) == (20, 4)
    assert small.run.validate_every == 20, "held-out loss at the end"
    assert nano.run.folder == "runs/scaling/try" and nano.name != small.name
    assert zero1.engine.deepspeed == "zero1_fp32"


def test_what_has_its_row_is_done_and_another_setting_is_another_cell(tmp_path: Path) -> None:
    sweep, cells = read_sweep(written(tmp_path))
    results = tmp_path / "results.jsonl"
    assert done_cells(sweep, cells, results) == set()
    append_row(results, "scaling", cells[1].identity(sweep.name), {})
    assert done_cells(sweep, cells, results) == {cells[1].name}
    assert open_cells(sweep, cells, results) == {1: [1, 3, 4, 7], 2: [5, 6]}
    assert [line.split("\t")[2] for line in states(sweep, cells, results)] == ["open", "done", *["open"] * 5]
    other, changed = read_sweep(written(tmp_path, set=SWEEP["set"] | {"optimizer.weight_decay": 0.0}))
    assert done_cells(other, changed, results) == set()


@pytest.mark.parametrize(("codes", "started", "code"), [((0, 1, 0), 3, 1), ((0, EXIT_STOPPED), 2, EXIT_STOPPED)])
def test_a_failed_cell_does_not_end_the_sweep_and_a_stopped_one_does(
    codes: tuple[int, ...], started: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, cells = read_sweep(written(tmp_path))
    calls: list[tuple[int, str]] = []
    left = iter(codes)
    monkeypatch.setattr(run, "launch_local", lambda n, command: (calls.append((n, command[-1])), next(left))[1])
    assert run_sweep(sweep, [cells[0], cells[4], cells[6]], tmp_path / "results.jsonl", ["again"]) == code
    assert calls == [(1, "--cell=1"), (2, "--cell=5"), (1, "--cell=7")][:started]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grid": []}, "unknown key 'grid'; did you mean \"grids\"?"),
        ({"grids": [{"size": ["nano"], "samples": [80]}]}, "unknown key 'grids.0.size'; did you mean \"sizes\"?"),
        ({"grids": [{"sizes": ["nano"]}]}, "missing key 'grids.0.samples'"),
        ({"grids": [{"sizes": ["nan"], "samples": [80]}]}, "unknown size 'nan'; did you mean \"nano\"?"),
        ({"grids": [{"sizes": ["nano"], "samples": [4]}]}, "found 4 samples for a cell whose global batch is 8"),
        ({"set": {"model.sise": "tiny"}}, 'unknown key "model.sise"'),
        ({"experiment": "none.yaml"}, "cannot read the experiment"),
        ({"set": {"data.validation": []}}, "no data.validation"),
    ],
)
def test_a_mistake_is_one_line(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as mistake:
        read_sweep(written(tmp_path, **changed))
    assert message in str(mistake.value) and "\n" not in str(mistake.value)


def test_a_cell_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    path = written(tmp_path)
    _, cells = read_sweep(path)
    assert choose(cells, 7, path)[0].layout == "zero1"
    with pytest.raises(InputError, match=r"--cell: found 8, but .* has the cells 1 to 7"):
        choose(cells, 8, path)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "scaling").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_sweeps_are_valid(path: Path) -> None:
    _, cells = read_sweep(path)
    assert len(cells) > 1
