"""Every shipped JSON is accepted by the real deepspeed.initialize, and what DeepSpeed would swallow is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from m3ae_scale.engine.deepspeed_json import (
    OFFLOAD,
    ZERO,
    find_deepspeed_json,
    leaves,
    load_deepspeed_json,
    offloads,
    shipped_folder,
)
from m3ae_scale.errors import InputError
from m3ae_scale.parallel.spawn import free_port

NAMES = [
    f"{stage}_{precision}.json"
    for stage in ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
    for precision in ("fp32", "bf16")
]


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.json"
    path.write_text(text)
    return path


def shipped(root: Path) -> list[Path]:
    return sorted((root / "configs" / "ds").glob("*.json"))


def test_every_stage_is_there_in_both_precisions(root: Path) -> None:
    assert sorted(path.name for path in shipped(root)) == sorted(NAMES)


def test_every_file_says_what_its_name_says(root: Path) -> None:
    for path in shipped(root):
        config = load_deepspeed_json(path)
        zero = config["zero_optimization"]
        assert zero["stage"] == int(path.stem[4])
        assert config["bf16"]["enabled"] == path.stem.endswith("bf16")
        assert ("offload_optimizer" in zero) == ("offload" in path.stem)
        assert "gradient_clipping" not in config  # the experiment's to say


@pytest.mark.timeout(900)  # DeepSpeed compiles its CPU Adam on first use
def test_deepspeed_initialises_and_trains_with_every_file_as_it_is(root: Path) -> None:
    script = Path(__file__).parent / "initialize_all.py"
    command = [sys.executable, str(script), str(free_port()), *map(str, shipped(root))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    losses = json.loads(done.stdout.splitlines()[-1])
    assert sorted(losses) == sorted(NAMES)
    for name, (first, *_, last) in losses.items():
        assert last < first, f"{name} does not learn"
        reference = losses["zero0_fp32.json"][0]
        assert first == pytest.approx(reference, rel=1e-6 if "fp32" in name else 0.05), name


def test_the_known_zero_keys_are_deepspeeds() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(ZERO) == theirs
    for section, known in OFFLOAD.items():
        inner = DeepSpeedZeroConfig.model_validate({section: {"device": "cpu"}})
        assert set(known) == set(type(getattr(inner, section)).model_fields)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"gradient_cliping": 1}', r'mine.json: unknown key "gradient_cliping"; did you mean "gradient_clipping"\?'),
        (
            '{"zero_optimization": {"stage3_param_persistance_threshold": 1}}',
            r'"zero_optimization.stage3_param_persistance_threshold"; did you mean "stage3_param_persistence_',
        ),
        ('{"zzz": 1}', 'unknown key "zzz"; DeepSpeed would ignore it'),
        ('{"train_batch_size": "auto"}', r'mine.json: train_batch_size: found "auto", which DeepSpeed drops'),
        ('{"data_types": {"x": ["auto"]}}', r'data_types.x: found "auto"'),
        (
            '{"data_types": {"grad_acum_dtype": "fp32"}}',
            'unknown key "data_types.grad_acum_dtype"; expected grad_accum_dt',
        ),
        ('{"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}', "zenflow: checkpoints do not know where"),
        (
            '{"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}',
            "device nvme: checkpoints do.*use cpu",
        ),
        ('{"zero_optimization": {"offload_optimizer": {"super_offload": true}}}', "super_offload: checkpoints do not"),
        ('{"activation_checkpointing": {}}', "activation_checkpointing: has no place here.*set engine.recompute"),
        ('{"zero_optimization": {"stage": 4}}', r"zero_optimization.stage: found 4, expected 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": true}}', r"found True, expected 0, 1, 2 or 3"),
        ('{"zero_optimization": true}', "zero_optimization: found True, expected an object"),
        (
            '{"zero_optimization": {"offload_param": true}}',
            "zero_optimization.offload_param: found True, expected an o",
        ),
        (
            '{"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}',
            r'zero_optimization.offload_optimizer: unknown key "devise"; did you mean "device"\?',
        ),
        (
            '{"zero_optimization": {"offload_param": {"device": "gpu"}}}',
            "device: found 'gpu', expected none, cpu or nv",
        ),
        (
            '{"zero_optimization": {"stage": 3, "offload_optimizer": {"ratio": 50}}}',
            "offload_optimizer.ratio: found 50, expected the share",
        ),
        ('{"optimizer": {"type": "Adam"}}', r"optimizer: has no place here; the experiment owns it"),
        ('{"scheduler": {"type": "WarmupLR"}}', r"scheduler: has no place here; the experiment owns it"),
        ('{"fp16": {"enabled": true}}', "fp16: has no place here; fp16 needs loss scaling and is not supported"),
        ('{"tensor_parallel": {}}', r"tensor_parallel: has no place here.*parallel.tensor"),
        ('{"train_micro_batch_size_per_gpu": 0}', "found 0, expected a whole number from 1 on"),
        ('{"train_batch_size": 6.5}', "found 6.5, expected a whole number"),
        ('{"gradient_clipping": -1}', "found -1, expected a norm"),
        ('{"bf16": {"enabled": "yes"}}', "bf16.enabled: found 'yes', expected true or false"),
        ('{"gradient_clipping": Infinity}', "gradient_clipping: found inf, expected a finite number"),
        ('{"bf16": true}', "bf16: found True, expected an object"),
        ('{"aio": {}, "aio": {}}', "aio: stands twice"),
        ('{\n"aio": {},\n}', r"mine.json:3: not valid JSON"),
        ("[1]", "found a list, expected an object"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load_deepspeed_json(write(tmp_path, text))


def test_a_block_that_is_switched_off_is_no_offence(tmp_path: Path) -> None:
    assert load_deepspeed_json(write(tmp_path, '{"fp16": {"enabled": false}}'))


@pytest.mark.parametrize(
    ("zero", "expected"),
    [
        ("", False),
        ('"offload_optimizer": null', False),
        ('"offload_optimizer": {}', False),
        ('"offload_optimizer": {"device": "none"}', False),
        ('"offload_optimizer": {"device": "cpu"}', True),
        ('"offload_param": {"device": "cpu"}', False),
    ],
)
def test_what_is_offloaded(tmp_path: Path, zero: str, expected: bool) -> None:
    file = tmp_path / "ds.json"
    file.write_text(f'{{"zero_optimization": {{{zero}}}}}')
    assert offloads(load_deepspeed_json(file), "offload_optimizer") is expected


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: cannot read the DeepSpeed config \(No such file"):
        load_deepspeed_json(tmp_path / "none.json")


def test_where_a_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = shipped_folder()
    assert shipped is not None
    beside, current = tmp_path / "beside", tmp_path / "current"
    beside.mkdir()
    current.mkdir()
    monkeypatch.chdir(current)
    assert find_deepspeed_json("zero3_bf16", beside) == shipped / "zero3_bf16.json"
    assert find_deepspeed_json("zero3_bf16.json", beside) == shipped / "zero3_bf16.json"
    (current / "zero3_bf16.json").write_text("{}")
    assert find_deepspeed_json("zero3_bf16", beside).resolve() == current / "zero3_bf16.json"
    (beside / "zero3_bf16.json").write_text("{}")
    assert find_deepspeed_json("zero3_bf16", beside) == beside / "zero3_bf16.json"
    assert find_deepspeed_json(str(current / "zero3_bf16.json"), beside) == current / "zero3_bf16.json"
    with pytest.raises(
        InputError, match=r"engine.deepspeed: found no 'zero3_bf61' beside.*did you mean \"zero3_bf16\""
    ):
        find_deepspeed_json("zero3_bf61", beside)


def test_leaves_are_dotted() -> None:
    assert dict(leaves({"a": 1, "b": {"c": {"d": [2]}, "e": None}})) == {"a": 1, "b.c.d": [2], "b.e": None}
