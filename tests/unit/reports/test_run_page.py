"""The page must hold the run's numbers and pictures, load nothing, and live with whatever is missing."""

import base64
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from m3ae_scale.config import Experiment, save_experiment
from m3ae_scale.reports.run_page import write_run_page
from m3ae_scale.training.metrics_file import append_metrics
from m3ae_scale.training.pictures import sheet_path
from m3ae_scale.training.provenance import provenance

EXPERIMENT = {
    "name": "a_run",
    "model": {"size": "tiny"},
    "data": {"sources": [{"name": "a", "shards": "a/<odd>&.tar"}], "tokenizer": "vocab.txt"},
    "batch": {"global": 8, "micro": 2},
    "train": {"length": "400 steps"},
    "engine": {"deepspeed": "zero3_bf16"},
}


def metrics(folder):
    for step in range(10, 401, 10):
        row = {
            "loss": 1.2345 if step == 400 else 400 / step,
            "image_loss": 200 / step,
            "text_loss": 300 / step,
            "lr": 1e-4,
            "samples_per_second": 77.0,
            "seconds": 30.0 * step,
        }
        append_metrics(folder / "metrics.jsonl", step, row)
    for step in (100, 200, 300, 400):
        append_metrics(folder / "metrics.jsonl", step, {"validation_loss": 1.5 + 1 / step})


def experiment(folder):
    save_experiment(Experiment.model_validate(EXPERIMENT), folder / "experiment.yaml")


def facts(folder):
    (folder / "provenance.json").write_text(json.dumps(provenance() | {"topology": {"processes": 6}, "unknown": [1]}))


def pictures(folder):
    for step in (0, 100, 200, 300, 400):
        path = sheet_path(folder, step)
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (step // 2, 0, 0)).save(path)


PIECES = (metrics, experiment, facts, pictures)


def page_of(folder):
    html = write_run_page(folder).read_text(encoding="utf-8")
    loads = re.findall(r'(?:src|href|action|data|srcset|poster)="([^"]*)"|url\(([^)]*)\)|@import', html)
    assert all((a or b).startswith(("#", "data:image/png;base64,")) for a, b in loads)
    assert "<script" not in html and "<link" not in html
    root = ElementTree.fromstring(html)
    return html, root, " ".join(" ".join(root.itertext()).split())


def test_a_whole_run_is_on_its_page(tmp_path):
    folder = tmp_path / "a_run"
    folder.mkdir()
    for write in PIECES:
        write(folder)
    html, root, text = page_of(folder)
    assert root.find("body/header/h1").text == "a_run"
    for figure in (
        "training loss 1.2345 from 40.0000",
        "validation loss 1.5025 from 1.5100",
        "3h20m",
        "77",
        "400 steps",
    ):
        assert figure in text
    for title in (
        "Total loss",
        "Total loss over time",
        "Image loss",
        "Text loss",
        "Samples per second",
        "Learning rate",
    ):
        assert f'aria-label="{title}"' in html
    assert "hours" in text and "validation" in text
    assert "processes 6" in text and "a/<odd>&.tar" in text and "zero3_bf16" in text
    assert "Gradient norm" not in text  # never measured
    shown = [base64.b64decode(image.get("src").split(",")[1]) for image in root.iter("img")]
    assert shown == [sheet_path(folder, step).read_bytes() for step in (0, 200, 400)]
    assert str(folder) in text and "mlflow.db" in text


@pytest.mark.parametrize("missing", [*PIECES, None], ids=lambda piece: piece.__name__ if piece else "all")
def test_what_is_missing_is_absent(tmp_path, missing):
    for write in PIECES if missing else ():
        if write is not missing:
            write(tmp_path)
    _, _, text = page_of(tmp_path)
    assert ("Curves" in text) == (missing in PIECES[1:])
    assert ("Reconstructions" in text) == (missing in PIECES[:3])
    assert not re.search(r"\b(nan|None)\b", text)


def test_a_run_of_one_row_and_one_that_diverged_have_pages(tmp_path):
    append_metrics(tmp_path / "metrics.jsonl", 1, {"loss": 2.0, "seconds": 1.0})
    page_of(tmp_path)
    for step in (2, 3, 4):
        append_metrics(tmp_path / "metrics.jsonl", step, {"loss": float("nan"), "gradient_norm": float("inf")})
    _, _, text = page_of(tmp_path)
    assert "steps 4" in text
