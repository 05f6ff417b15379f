"""The JSON and the experiment are reconciled once: one side fills the other, and a contradiction names both places."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.config import load_experiment
from m3ae_scale.engine.deepspeed_config import Resolved, resolve
from m3ae_scale.engine.deepspeed_json import leaves
from m3ae_scale.errors import InputError
from m3ae_scale.parallel.topology import Topology

EXPERIMENT = """\
name: test
model: {size: tiny, image_size: 64, patch: 8}
data:
  sources: [{name: pairs, shards: nowhere}]
  tokenizer: vocab.txt
train: {length: 10 steps}
batch:
  global: 64
engine:
  deepspeed: mine
"""


def resolved(
    folder: Path, ds: dict[str, Any], *overrides: str, yaml: str = EXPERIMENT, world: int = 2, **keywords: Any
) -> Resolved:
    (folder / "mine.json").write_text(json.dumps(ds))
    path = folder / "exp.yaml"
    path.write_text(yaml)
    experiment, origins = load_experiment(path, list(overrides))
    return resolve(experiment, origins, Topology(world, experiment.parallel.tensor), folder, **keywords)


def test_every_value_has_a_place_and_nothing_else_has(tmp_path: Path) -> None:
    final = resolved(tmp_path, {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}})
    assert sorted(final.provenance) == sorted(key for key, _ in leaves(final.config))


def test_the_experiment_fills_the_json(tmp_path: Path) -> None:
    final = resolved(
        tmp_path, {}, "batch.micro=8", "optimizer.gradient_clipping=1", "engine.precision=bf16", "batch.global=64"
    )
    assert final.config == {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 8,
        "gradient_accumulation_steps": 4,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 0},
    }
    assert final.precision == "bf16"
    assert final.provenance["train_batch_size"] == "--set: batch.global"
    assert final.provenance["gradient_accumulation_steps"] == "worked out: global 64 / data parallel 2 / micro 8"


def test_the_json_fills_the_experiment(tmp_path: Path) -> None:
    ds = {"train_micro_batch_size_per_gpu": 16, "gradient_clipping": 0.5, "bf16": {"enabled": True}}
    final = resolved(tmp_path, ds)
    assert (final.plan.micro_batch, final.plan.accumulation) == (16, 2)
    assert final.config["gradient_clipping"] == 0.5
    assert final.precision == "bf16"
    assert final.provenance["train_micro_batch_size_per_gpu"] == str(tmp_path / "mine.json")
    assert final.provenance["train_batch_size"] == "exp.yaml:8: batch.global"


def test_what_neither_side_says_is_said_all_the_same(tmp_path: Path) -> None:
    final = resolved(tmp_path, {})
    assert final.config["gradient_clipping"] == 0.0  # DeepSpeed's default is 1.0
    assert final.config["bf16"] == {"enabled": False}
    assert final.precision == "fp32"
    assert final.plan.accumulation == 1
    assert final.provenance["gradient_clipping"] == "neither side: off"


def test_agreement_is_no_conflict(tmp_path: Path) -> None:
    ds = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4}
    final = resolved(
        tmp_path, {**ds, "gradient_clipping": 1, "bf16": {"enabled": False}},
        "batch.micro=8", "optimizer.gradient_clipping=1.0", "engine.precision=fp32",
    )  # fmt: skip
    assert final.plan.accumulation == 4


@pytest.mark.parametrize(
    ("ds", "overrides", "complaint"),
    [
        (
            {"train_batch_size": 128},
            [],
            r"mine.json: train_batch_size is 128, but exp.yaml:8: batch.global is 64; make them equal, as with "
            r"--set batch.global=128 or --set engine.overrides.train_batch_size=64$",
        ),
        (
            {"train_micro_batch_size_per_gpu": 16},
            ["batch.micro=8"],
            r"mine.json: train_micro_batch_size_per_gpu is 16, but --set: batch.micro is 8; make them equal",
        ),
        (
            {"gradient_clipping": 1.0},
            ["optimizer.gradient_clipping=0"],
            r"mine.json: gradient_clipping is 1.0, but --set: optimizer.gradient_clipping is 0.0",
        ),
        (
            {"bf16": {"enabled": False}},
            ["engine.precision=bf16"],
            r"--set: engine.precision is bf16, but .*mine.json: bf16.enabled is false; name the bf16 JSON",
        ),
        (
            {"train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 4},
            [],
            r"exp.yaml:8: micro 16 x accumulation 4 x data parallel 2 = 128, but batch.global is 64; .*"
            r"\(gradient_accumulation_steps is from .*mine.json\)",
        ),
        (
            {"train_micro_batch_size_per_gpu": 24},
            [],
            r"exp.yaml:8: batch.global 64 does not divide by micro 24 x data parallel 2 = 48; use 48 or 96.*"
            r"\(train_micro_batch_size_per_gpu is from .*mine.json\)",
        ),
        (
            {"train_micro_batch_size_per_gpu": 16},
            ["batch.micro_tokens=1000"],
            r"counts samples, but --set: batch.micro_tokens counts tokens; keep one",
        ),
        (
            {},
            ["engine.overrides.zero_optimization.stage=5"],
            r"^--set: engine.overrides: zero_optimization.stage: foun",
        ),
        ({}, ["engine.overrides.optimizer.type=Adam"], "^--set: engine.overrides: optimizer: has no place here"),
        ({"aio": {"depth": 1}}, ["engine.overrides.aio.depth.x=1"], "'depth' is not a section"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            ["engine.overrides.zero_optimization.offload_optimizer.ratio=0.5"],
            r"^--set: engine.overrides: .*ratio 0.5 keeps part.*mine.json: zero_optimization.stage is 2; use stage 3",
        ),
    ],
)
def test_contradictions_name_both_places(
    tmp_path: Path, ds: dict[str, Any], overrides: list[str], complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        resolved(tmp_path, ds, *overrides)
    assert "\n" not in str(caught.value)


def test_the_commands_that_a_conflict_suggests_resolve_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        resolved(tmp_path, {"train_micro_batch_size_per_gpu": 16}, "batch.micro=8")
    for suggestion in str(caught.value).split("--set ")[1:]:
        override = suggestion.split()[0]
        assert resolved(tmp_path, {"train_micro_batch_size_per_gpu": 16}, "batch.micro=8", override).plan


def test_overrides_come_dotted_or_nested_and_null_takes_away(tmp_path: Path) -> None:
    yaml = EXPERIMENT + "  overrides:\n    zero_optimization.overlap_comm: false\n    zero_optimization: {stage: 1}\n"
    ds = {"zero_optimization": {"stage": 3, "overlap_comm": True, "offload_param": {"device": "cpu"}}}
    final = resolved(tmp_path, ds, "engine.overrides.zero_optimization.offload_param=null", yaml=yaml)
    assert final.config["zero_optimization"] == {"stage": 1, "overlap_comm": False}
    assert final.provenance["zero_optimization.overlap_comm"] == "exp.yaml:12: engine.overrides"
    assert sorted(final.provenance) == sorted(key for key, _ in leaves(final.config))


def test_a_token_budget_plans_the_accumulation(tmp_path: Path) -> None:
    ds = {"train_micro_batch_size_per_gpu": 16}
    drop = "engine.overrides.train_micro_batch_size_per_gpu=null"
    final = resolved(tmp_path, ds, "batch.micro_tokens=800", drop, tokens_per_sample=90.0)
    assert (final.plan.micro_batch, final.plan.accumulation, final.plan.micro_tokens) == (8, 4, 800)
    with pytest.raises(InputError, match="needs the average tokens per sample"):
        resolved(tmp_path, ds, "batch.micro_tokens=800", drop)


def test_tensor_parallel_ranks_do_not_count_as_data(tmp_path: Path) -> None:
    final = resolved(tmp_path, {"train_micro_batch_size_per_gpu": 16}, "parallel.tensor=2", world=4)
    assert (final.plan.data, final.plan.accumulation) == (2, 2)


@given(
    micro=st.integers(1, 32),
    accumulation=st.integers(1, 8),
    data=st.integers(1, 8),
    sides=st.sets(st.sampled_from("ma")),
)
def test_deepspeeds_own_equation_holds(
    tmp_path_factory: pytest.TempPathFactory, micro: int, accumulation: int, data: int, sides: set[str]
) -> None:
    folder = tmp_path_factory.mktemp("ds")
    keys = {"m": ("train_micro_batch_size_per_gpu", micro), "a": ("gradient_accumulation_steps", accumulation)}
    final = resolved(folder, dict(keys[s] for s in sides), f"batch.global={micro * accumulation * data}", world=data)
    config = final.config
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * data
    assert product == config["train_batch_size"] == micro * accumulation * data


def test_the_shipped_files_resolve(tmp_path: Path, root: Path) -> None:
    for path in sorted((root / "configs" / "ds").glob("*.json")):
        final = resolved(tmp_path, {}, f"engine.deepspeed={path.stem}", "batch.global=256")
        assert (final.plan.micro_batch, final.plan.accumulation) == (64, 2)
        assert final.precision == path.stem.rpartition("_")[2]
