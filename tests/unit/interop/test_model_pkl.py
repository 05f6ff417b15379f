"""Checkpoints of m3ae_public, as its code writes them and as ours does: exact both ways, and the model is the same."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_model import drawn_model, experiment, values_of

from m3ae_scale.errors import InputError
from m3ae_scale.interop.m3ae_public import from_flax
from m3ae_scale.interop.model_pkl import read_model_pkl, write_model_pkl

FIXTURES = Path(__file__).parents[2] / "fixtures" / "m3ae_public"

# What the official code does: a state of m3ae.model, closures in its optimizer, cloudpickle.
WRITE = """
import sys, numpy as np, cloudpickle
from m3ae.model import M3AETrainState, FrozenDict
archive, output, frozen = sys.argv[1:]
tree = {}
with np.load(archive) as arrays:
    for key in arrays:
        if key.startswith("params/"):
            *parents, leaf = key.split("/")[1:]
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = arrays[key]
rate = 1e-3
params = {"params": tree}
if frozen == "yes":
    params = FrozenDict(params)
state = M3AETrainState(step=np.int32(3), params=params, tx=(lambda s: rate * s,), opt_state=[np.ones(3)])
variant = {"m3ae.num_heads": 4, "m3ae.dec_num_heads": 4, "mae.num_heads": 4, "mae.dec_num_heads": 4,
           "data.image_size": 64, "data.image_normalization": "cc12m", "data.tokenizer_max_length": 16}
with open(output, "wb") as file:
    cloudpickle.dump({"step": 3, "epoch": 1, "variant": variant, "state": state}, file)
"""
MODULE = """
import dataclasses
from typing import Any

class FrozenDict:
    def __init__(self, value): self._dict = value
    def __reduce__(self): return FrozenDict, (self._dict,)

@dataclasses.dataclass(frozen=True)
class M3AETrainState:
    step: Any; params: Any; tx: Any; opt_state: Any
"""


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Files as the official code writes them, by a process that has a module m3ae."""
    folder = tmp_path_factory.mktemp("official")
    (folder / "m3ae").mkdir()
    (folder / "m3ae" / "__init__.py").write_text("")
    (folder / "m3ae" / "model.py").write_text(MODULE)
    files = {}
    for case, frozen in (("m3ae_type_h0", "no"), ("m3ae_type_h0", "yes"), ("mae_type_h0", "no")):
        files[case, frozen] = folder / f"{case}-{frozen}.pkl"
        subprocess.run(
            [sys.executable, "-c", WRITE, FIXTURES / f"{case}.npz", files[case, frozen], frozen], cwd=folder, check=True
        )
    return files


@pytest.mark.parametrize(("case", "frozen"), [("m3ae_type_h0", "no"), ("m3ae_type_h0", "yes"), ("mae_type_h0", "no")])
def test_parameters_come_out_exactly(official: dict[tuple[str, str], Path], case: str, frozen: str) -> None:
    found = read_model_pkl(official[case, frozen])
    with np.load(FIXTURES / f"{case}.npz") as archive:
        recorded = {k.removeprefix("params/"): archive[k] for k in archive if k.startswith("params/")}
    assert not found.unused and len(found.values) == len(recorded)
    for name, value in from_flax(recorded, found.values).items():
        np.testing.assert_array_equal(found.values[name], value)
    assert found.model["encoder"] == {"dim": 64, "depth": 2, "heads": 4, "mlp_dim": 256}
    assert found.model["decoder"] == {"dim": 48, "depth": 2, "heads": 4, "mlp_dim": 192}
    assert (found.model["image_size"], found.model["patch"], found.step) == (64, 16, 3)
    assert "m3ae" not in sys.modules and "jax" not in sys.modules


@pytest.mark.parametrize("options", [{}, {"output_head_depth": 2}, {"type_embedding": False}, {"image_codebook": 7}])
def test_what_is_written_is_read_again_exactly(options: dict[str, Any], tmp_path: Path) -> None:
    values = values_of(drawn_model(experiment(**options)))
    path = tmp_path / "model.pkl"
    write_model_pkl(values, experiment(**options), 7, path)
    found = read_model_pkl(path)
    assert found.values.keys() == values.keys() and found.step == 7 and not found.unused
    for name, value in values.items():
        np.testing.assert_array_equal(found.values[name], value)
    for key in ("encoder", "decoder", "image_size", "patch", "output_head_depth", "type_embedding", "image_codebook"):
        assert found.model[key] == experiment(**options).model_dump()["model"][key], key
    assert found.pixels == (experiment().data.augment.mean, experiment().data.augment.std)


def test_the_official_unpickler_makes_the_state_of_it(official: dict[tuple[str, str], Path], tmp_path: Path) -> None:
    folder = official["m3ae_type_h0", "no"].parent
    values = values_of(drawn_model(experiment()))
    write_model_pkl(values, experiment(), 7, tmp_path / "model.pkl")
    script = (
        "import pickle, sys, warnings; warnings.simplefilter('ignore'); d = pickle.load(open(sys.argv[1], 'rb'));"
        "s = d['state']; k = s.params['params']['encoder']['Block_2']['Attention_0']['Dense_0']['kernel'];"
        "print(type(s).__module__, type(s).__name__, s.step, s.tx, k.shape, repr(float(k.sum())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model.pkl"], cwd=folder, check=True, capture_output=True, text=True
    )
    kernel = values["encoder.transformer.blocks.2.attention.qkv.weight"].T
    assert done.stdout.split(maxsplit=4)[:4] == ["m3ae.model", "M3AETrainState", "7", "None"]
    assert float(done.stdout.split()[-1]) == pytest.approx(float(kernel.sum()), rel=1e-5)
    assert str(kernel.shape) in done.stdout


def test_other_pickles_are_a_mistake_in_one_line(tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "model.pkl"
    arrays = {"cls_token": np.ones((1, 1, 8), np.float32), "image_embedding": {"kernel": np.ones((12, 8), np.float32)}}
    for value in (
        {},
        [1],
        {"state": {"params": {"params": {"cls_token": "x"}}}},
        {"state": {"params": {"params": arrays}}},
        {"state": {"params": {"params": arrays | {"encoder/Block_999999999/x": np.ones(1)}}}},
    ):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(InputError) as mistake:
            read_model_pkl(path)
        assert "\n" not in str(mistake.value) and str(path) in str(mistake.value)


def test_unequal_mlp_ratios_cannot_be_written(tmp_path: Path) -> None:
    uneven = experiment(decoder={"dim": 16, "depth": 2, "heads": 2, "mlp_dim": 64})
    with pytest.raises(InputError, match="mlp_ratio"):
        write_model_pkl({"encoder.embed.cls_token": np.ones(32, np.float32)}, uneven, 1, tmp_path / "model.pkl")
