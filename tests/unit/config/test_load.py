"""An experiment is read as people write it, every value knows its origin, and every mistake is one helpful line."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from m3ae_scale.config import Experiment, Origins, Span, annotated, load_experiment, save_experiment
from m3ae_scale.errors import InputError

TEXT = """\
name: test
model: {size: tiny, image_size: 64, patch: 8}
data:
  sources:
    - {name: pairs, shards: a}
    - {name: texts, shards: [b, c], kind: text}
  tokenizer: vocab.txt
batch:
  global: 64
optimizer:
  lr: 1e-4
train:
  length: 10 epochs
engine:
  deepspeed: zero3_fp32
"""


def load(folder: Path, text: str = TEXT, *overrides: str) -> tuple[Experiment, Origins]:
    path = folder / "exp.yaml"
    path.write_text(text, encoding="utf-8")
    return load_experiment(path, list(overrides))


def complaint(folder: Path, text: str = TEXT, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "")


def test_defaults_yaml_and_overrides_in_that_order(tmp_path: Path) -> None:
    experiment, _ = load(tmp_path, TEXT, "optimizer.lr=3e-4", "data.workers=0")
    assert experiment.optimizer.lr == 3e-4
    assert experiment.data.workers == 0
    assert experiment.batch.global_ == 64
    assert experiment.mask.image_ratio == 0.75


def test_a_size_fills_the_towers_and_a_written_key_wins(tmp_path: Path) -> None:
    experiment, _ = load(tmp_path, TEXT, "model.encoder.depth=2")
    assert experiment.model.encoder.depth == 2
    assert experiment.model.encoder.dim == 128
    assert experiment.model.decoder.dim == 64


# What YAML 1.1 reads as text: a number in scientific notation without both a point and a signed exponent.
NUMBERS = ["1e-4", "1E-4", "1.5e-4", "2e3", "1.e2", "+1e1", "1_0e1", ".5e0"]


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_as_people_write_them(tmp_path: Path, text: str) -> None:
    expected = float(text.replace("_", ""))
    experiment, _ = load(tmp_path, TEXT.replace("lr: 1e-4", f"lr: {text}"))
    assert experiment.optimizer.lr == expected
    assert load(tmp_path, TEXT, f"optimizer.lr={text}")[0].optimizer.lr == expected
    # An override of DeepSpeed's is typed by nobody else.
    experiment, _ = load(tmp_path, TEXT, f"engine.overrides.reduce_bucket_size={text}")
    assert experiment.engine.overrides["reduce_bucket_size"] == expected


@given(value=st.floats(min_value=1e-300, max_value=1e300))
def test_any_float_survives_the_command_line(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    folder = tmp_path_factory.mktemp("float")
    assert load(folder, TEXT, f"optimizer.lr={value!r}")[0].optimizer.lr == value
    assert load(folder, TEXT, f"optimizer.lr={value:.17g}")[0].optimizer.lr == value


def test_text_that_looks_a_little_like_a_number_stays_text(tmp_path: Path) -> None:
    assert load(tmp_path, TEXT, "name=e5")[0].name == "e5"
    assert load(tmp_path, TEXT, "name=1e4a")[0].name == "1e4a"


def test_every_given_value_has_its_line(tmp_path: Path) -> None:
    _, origins = load(tmp_path)
    lines = TEXT.splitlines()
    assert origins["batch.global"] == "exp.yaml:9"
    assert origins["data.sources.1.kind"] == "exp.yaml:6"
    assert "data.workers" not in origins
    for key, origin in origins.items():
        name = key.rpartition(".")[2]
        line = lines[int(origin.removeprefix("exp.yaml:")) - 1]
        assert name.isdigit() or f"{name}:" in line


def test_an_override_takes_the_origin_of_what_it_replaces(tmp_path: Path) -> None:
    _, origins = load(tmp_path, TEXT, "batch.global=32", "data.sources=[{name: x, shards: y}]", "run.log_every=5")
    assert origins["batch.global"] == origins["data.sources"] == origins["run.log_every"] == "--set"
    assert not any(key.startswith("data.sources.") for key in origins)


def test_a_place_in_a_list_can_be_set(tmp_path: Path) -> None:
    experiment, origins = load(tmp_path, TEXT, "data.sources.1.weight=2.5", "data.sources.1.shards.0=d")
    assert experiment.data.sources[1].weight == 2.5
    assert experiment.data.sources[1].shards == ["d", "c"]
    assert experiment.data.sources[0].weight == 1.0
    assert origins["data.sources.1.weight"] == "--set"


def test_nothing_and_null_take_a_value_away(tmp_path: Path) -> None:
    text = TEXT + "  precision: bf16\n"
    assert load(tmp_path, text)[0].engine.precision == "bf16"
    assert load(tmp_path, text, "engine.precision=")[0].engine.precision is None
    assert load(tmp_path, text, "engine.precision=null")[0].engine.precision is None


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert load(tmp_path, TEXT, "data.tokenizer=s3://b/v?x=1")[0].data.tokenizer == "s3://b/v?x=1"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("lr: 1e-4", "lrr: 1e-4", 'exp.yaml:11: unknown key "optimizer.lrr"; did you mean "lr"?'),
        ("  global:", "  globl:", 'exp.yaml:9: unknown key "batch.globl"; did you mean "global"?'),
        ("deepspeed:", "deepsped:", 'exp.yaml:15: unknown key "engine.deepsped"; did you mean "deepspeed"?'),
        ("optimizer:", "optimiser:", 'exp.yaml:10: unknown key "optimiser"; did you mean "optimizer"?'),
        ("kind: text", "knd: text", 'exp.yaml:6: unknown key "data.sources.1.knd"; did you mean "kind"?'),
        ("patch: 8", "encoder: {dpth: 2}", 'exp.yaml:2: unknown key "model.encoder.dpth"; did you mean "depth"?'),
        (
            "patch: 8",
            "zzz: 8",
            'exp.yaml:2: unknown key "model.zzz"; expected one of: size, encoder, decoder, image_size',
        ),
        ("  tokenizer: vocab.txt\n", "", 'exp.yaml:3: missing key "data.tokenizer"; add it'),
        ("name: test\n", "", 'exp.yaml: missing key "name"; add it'),
        ("kind: text", "kind: tekst", "exp.yaml:6: data.sources.1.kind: found 'tekst': "),
        ("global: 64", "global: 0", "exp.yaml:9: batch.global: found 0: Input should be greater than 0"),
        ("lr: 1e-4", "lr: .inf", "exp.yaml:11: optimizer.lr: found inf: Input should be a finite number"),
        ("global: 64", "global: many", "exp.yaml:9: batch.global: found 'many': "),
        ("size: tiny", "size: tny", "exp.yaml:2: model.size: found 'tny', expected one of tiny, small"),
        ("patch: 8", "patch: 7", "exp.yaml:2: model: image_size 64 does not divide by patch 7"),
        (
            "name: texts",
            "name: pairs",
            "exp.yaml:4: data.sources: the name 'pairs' stands twice; a name tells a source apart",
        ),
        ("10 epochs", "10 parsecs", "exp.yaml:13: train.length: found '10 parsecs': expected a number and a unit"),
        ("10 epochs", "10", "exp.yaml:13: train.length: "),
        ("lr: 1e-4", "lr: 1e-4\n  lr: 2e-4", "exp.yaml:12: not valid YAML: the key 'lr' stands twice"),
        ("lr: 1e-4", "lr: [1", "exp.yaml:12: not valid YAML: "),
        ("{size: tiny, image_size: 64, patch: 8}", "tiny", "exp.yaml:2: model: found 'tiny': "),
    ],
)
def test_a_mistake_names_its_line_and_what_would_be_right(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in TEXT
    assert expected in complaint(tmp_path, TEXT.replace(old, new, 1))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("batch.globl=3", '--set: unknown key "batch.globl"; did you mean "global"?'),
        ("batch.global=-3", "--set: batch.global: found -3: Input should be greater than 0"),
        ("batch.global", "--set batch.global: expected KEY=VALUE, as in --set batch.global=256"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("name.first=x", "--set name.first: there is no such place in the experiment"),
        ("name.first.x=x", "--set name.first.x: 'first' is not a section"),
        ("data.sources.7.kind=image", "--set data.sources.7.kind: '7' is not a section"),
        ("data.sources.name=x", "--set data.sources.name: there is no such place"),
        ("data.sources=[", "--set data.sources=[:1: not valid YAML"),
        (
            "parallel.tensor=3",
            "--set: parallel.tensor: 3 does not divide model.encoder.heads (4); choose a divisor of 4",
        ),
        ("parallel.sequence=true", "--set: parallel.sequence: true, but tensor is 1; tokens are split over"),
    ],
)
def test_a_mistake_on_the_command_line(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in complaint(tmp_path, TEXT, override)


def test_files_that_are_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the experiment \(No such file"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(InputError, match=r"cannot read the experiment \(Is a directory"):
        load_experiment(tmp_path)
    assert "found nothing, expected sections" in complaint(tmp_path, "")
    assert "found a list, expected sections" in complaint(tmp_path, "- a\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        load_experiment(tmp_path / "binary.yaml")


def test_loading_does_not_change_what_it_is_given(tmp_path: Path) -> None:
    overrides = ["batch.global=32"]
    before = copy.copy(overrides)
    path = tmp_path / "exp.yaml"
    path.write_text(TEXT)
    load_experiment(path, overrides)
    assert overrides == before
    assert path.read_text() == TEXT


spans = st.builds(
    Span,
    count=st.one_of(st.integers(0, 10**12).map(float), st.floats(0, 1e18)),
    unit=st.sampled_from(["steps", "epochs", "samples"]),
)
ratios = st.floats(0, 1)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
plain = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), words, st.none())


@given(
    length=spans,
    ratio=ratios,
    lr=st.floats(1e-12, 10),
    shards=st.one_of(words, st.lists(words, min_size=1, max_size=3)),
    overrides=st.dictionaries(words, st.one_of(plain, st.lists(plain, max_size=3)), max_size=3),
    weight=st.floats(1e-9, 1e9),
)
@example(  # texts that read as numbers
    length=Span(count=1, unit="steps"), ratio=0.5, lr=1e-4, shards="0E0", overrides={"1e5": "1e5"}, weight=1.0
)
def test_a_saved_experiment_loads_as_it_was(
    tmp_path_factory: pytest.TempPathFactory,
    length: Span,
    ratio: float,
    lr: float,
    shards: Any,
    overrides: dict[str, Any],
    weight: float,
) -> None:
    values = yaml.safe_load(TEXT)
    values["train"]["length"] = length
    values["mask"] = {"text_ratio": ratio}
    values["optimizer"] = {"lr": lr}
    values["data"]["sources"] = [{"name": "a", "shards": shards, "weight": weight}]
    values["engine"]["overrides"] = overrides
    experiment = Experiment.model_validate(values)
    path = tmp_path_factory.mktemp("saved") / "saved.yaml"
    save_experiment(experiment, path)
    again, origins = load_experiment(path)
    assert again == experiment
    assert origins["mask.image_ratio"]  # defaults are spelled out
    assert "model.encoder.dim" in origins


def test_annotated_text_loads_again_and_names_each_origin(tmp_path: Path) -> None:
    experiment, origins = load(tmp_path, TEXT, "seed=7", "mask={text_ratio: 0.5}")
    text = annotated(experiment, origins)
    comments = {line.split(":")[0].strip(): line.partition("# ")[2] for line in text.splitlines()}
    assert comments["seed"] == "--set"
    assert comments["text_ratio"] == "--set"
    assert comments["global"] == "exp.yaml:9"
    assert comments["mlp_dim"] == "exp.yaml:2, from the size"
    assert comments["flip"] == "default"
    assert load(tmp_path, text)[0] == experiment


@given(count=st.floats(0, 1e15), unit=st.sampled_from(["step", "steps", "EPOCH", "epochs", "Samples"]))
def test_a_span_reads_what_it_writes(count: float, unit: str) -> None:
    span = Span.model_validate(f"{count!r} {unit}")
    assert span == Span(count=count, unit=unit.lower().rstrip("s") + "s")
    assert Span.model_validate(span.model_dump()) == span


@given(epochs=st.integers(0, 1000), batch=st.integers(1, 5000), samples=st.integers(1, 10**8))
def test_a_span_in_steps(epochs: int, batch: int, samples: int) -> None:
    steps = Span(count=epochs, unit="epochs").steps(batch, samples)
    assert steps * batch <= epochs * samples < (steps + 1) * batch
    assert Span(count=epochs, unit="steps").steps(batch, samples) == epochs


def test_the_experiment_is_read_without_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = "import sys, m3ae_scale.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_shipped_experiments_load(root: Path) -> None:
    paths = [*(root / "configs").glob("*.yaml"), *(root / "configs" / "paper").glob("*.yaml")]
    assert len(paths) >= 5
    for path in paths:
        experiment, _ = load_experiment(path)
        assert experiment.name == path.stem


@pytest.mark.parametrize("size", ["small", "base", "large"])
def test_the_papers_settings(root: Path, size: str) -> None:
    experiment, _ = load_experiment(root / "configs" / "paper" / f"m3ae_{size}_cc12m.yaml")
    assert experiment.model.size == size
    assert experiment.model.image_size == 256
    assert experiment.batch.global_ == 4096
    assert (str(experiment.train.model_dump()["length"]), experiment.train.model_dump()["warmup"]) == (
        "100 epochs",
        "5 epochs",
    )
    assert (experiment.optimizer.lr, experiment.optimizer.weight_decay) == (1.5e-4, 0.05)
    assert (experiment.loss.image, experiment.loss.text) == (1.0, 0.5)
    assert (experiment.mask.image_ratio, experiment.mask.text_ratio) == (0.75, 0.75)
