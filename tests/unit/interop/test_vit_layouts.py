"""Exported encoders in the packages they are exported for, and without them: the features are ours."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_model import drawn_model, experiment, values_of
from safetensors.torch import load_file, save_file

from m3ae_scale.config import LossConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.errors import InputError
from m3ae_scale.interop.export import FORMATS, export_as
from m3ae_scale.interop.plain_vit import plain_vit

CLOSE = 2e-6  # of the largest feature: float32 sums in another order


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as `checkpoint export` writes it."""
    path = tmp_path_factory.mktemp("source") / "weights.safetensors"
    told = {"format": "pt", "step": "12", "experiment": json.dumps(experiment().model_dump(mode="json", by_alias=True))}
    save_file({name: torch.tensor(value) for name, value in values_of(drawn_model(experiment())).items()}, path, told)
    return path


def patches() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 16, 48)).astype(np.float32)


def images() -> torch.Tensor:
    grid = patches().reshape(2, 4, 4, 4, 4, 3).transpose(0, 5, 1, 3, 2, 4)
    return torch.tensor(np.ascontiguousarray(grid.reshape(2, 3, 16, 16)))


@torch.no_grad()
def ours() -> torch.Tensor:
    seen = np.ones(16, bool)
    batch = pack([Sample(str(i), p, None, seen, None, i) for i, p in enumerate(patches())], LossConfig(), 48)
    return drawn_model(experiment()).encoder(batch).view(2, 17, -1)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_timm_layout_without_timm(source: Path, tmp_path: Path) -> None:
    line = export_as(source, "timm", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert relative(plain_vit(weights, 4, images()), ours()) < CLOSE
    assert float(line.split(" by ")[1].split()[0]) < CLOSE  # the error that the export itself measured


@torch.no_grad()
def test_hf_vit(source: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_as(source, "hf_vit", tmp_path / "out")
    model, told = transformers.ViTModel.from_pretrained(
        tmp_path / "out", add_pooling_layer=False, output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert relative(model.eval()(images()).last_hidden_state, ours()) < CLOSE


@torch.no_grad()
def test_hf_vitmae_encodes_and_reconstructs(source: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_as(source, "hf_vitmae", tmp_path / "out")
    model, told = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    out = model.eval()(images(), noise=noise)
    seen = (out.mask == 0).numpy()
    samples = [Sample(str(i), p, None, s, None, i) for i, (p, s) in enumerate(zip(patches(), seen, strict=True))]
    mine = drawn_model(experiment()).reconstruct(pack(samples, LossConfig(), 48)).image
    assert relative(mine, out.logits[out.mask == 1]) < CLOSE


TIMM = """
import sys, types, warnings
from importlib.machinery import ModuleSpec
warnings.simplefilter("ignore")
class Absent(types.ModuleType):  # torchvision, which timm imports and a plain ViT never calls
    __path__ = []
    def __getattr__(self, name):
        if name.startswith("__"): raise AttributeError(name)
        return type(name, (), {"__getattr__": None, "BILINEAR": 2, "BICUBIC": 3, "NEAREST": 0, "BOX": 4, "HAMMING": 5,
                               "LANCZOS": 1})
for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional", ".datasets", ".models", ".utils",
             ".models.feature_extraction"):
    module = sys.modules["torchvision" + name] = Absent("torchvision" + name)
    module.__spec__ = ModuleSpec("torchvision" + name, None)
    if name: setattr(sys.modules["torchvision" + name.rpartition(".")[0]], name.rpartition(".")[2], module)
import numpy as np, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
with torch.no_grad():
    np.save(sys.argv[3], model.forward_features(torch.tensor(np.load(sys.argv[2]))).numpy())
"""


def test_timm_itself(source: Path, tmp_path: Path) -> None:
    """In a process of its own, with stand-ins for torchvision, of which there is no build for CPUs alone."""
    if subprocess.run([sys.executable, "-c", "import importlib.util as u; exit(not u.find_spec('timm'))"]).returncode:
        pytest.skip("timm is not installed")
    export_as(source, "timm", tmp_path / "out")
    np.save(tmp_path / "images.npy", images().numpy())
    subprocess.run(
        [sys.executable, "-c", TIMM, tmp_path / "out", tmp_path / "images.npy", tmp_path / "features.npy"], check=True
    )
    assert relative(torch.tensor(np.load(tmp_path / "features.npy")), ours()) < CLOSE


@pytest.mark.parametrize("form", FORMATS)
def test_every_export_has_a_card(form: str, source: Path, tmp_path: Path) -> None:
    export_as(source, form, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("# tiny", "32 wide, 3 blocks, 4 heads", "12 steps of 4 samples", "No metrics lay", "a (paired"):
        assert words in card, words
    with pytest.raises(InputError, match="exists"):
        export_as(source, form, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_weights_without_their_experiment_are_refused(tmp_path: Path) -> None:
    save_file({"encoder.embed.cls_token": torch.ones(3)}, tmp_path / "bare.safetensors")
    with pytest.raises(InputError, match="experiment"):
        export_as(tmp_path / "bare.safetensors", "timm", tmp_path / "out")
