"""`m3ae-scale weights`: in one file, out the other, and a mistake is one line."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from made_model import VOCABULARY, drawn_model, experiment, values_of

from m3ae_scale.cli.main import main
from m3ae_scale.config import ModelConfig
from m3ae_scale.interop.fit import fit
from m3ae_scale.interop.model_pkl import write_model_pkl
from m3ae_scale.interop.read import read_found


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    write_model_pkl(values_of(drawn_model(experiment())), experiment(), 7, tmp_path / "model.pkl")
    return tmp_path / "model.pkl"


def test_import_writes_what_init_from_takes(pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "import", str(pickled), str(tmp_path / "in.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "80 parameters" in said and "not used: none" in said
    printed = ModelConfig.model_validate(yaml.safe_load(said[said.index("model:") :])["model"])
    assert (printed.encoder, printed.decoder, printed.grid) == (
        experiment().model.encoder, experiment().model.decoder, experiment().model.grid
    )  # fmt: skip
    values, line = fit(read_found(tmp_path / "in.safetensors"), experiment(), VOCABULARY)
    assert "step 7" in line and "80 of 80" in line
    for name, value in values_of(drawn_model(experiment())).items():
        np.testing.assert_array_equal(values[name], value)


@pytest.mark.parametrize("verb", [["import"], ["export", "--format", "timm"]])
def test_a_mistake_is_one_line(
    verb: list[str], pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output that exists; an input that is not there; for export, weights that do not tell their experiment."""
    for source, output in ((pickled, pickled), (tmp_path / "absent", tmp_path / "out")):
        assert main(["weights", *verb, str(source), str(output)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    if verb[0] == "export":
        assert main(["weights", *verb, str(pickled), str(tmp_path / "out")]) == 2
        assert "experiment" in capsys.readouterr().err
    assert not list(tmp_path.glob("*tmp-*"))
