"""Looking at a trained model, and moving its weights out, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path

from m3ae_scale.cli.main import main


def outcome(run: Path, name: str) -> dict:
    (folder,) = (run / "evaluation").glob(f"{name}-*")
    page = (folder / "page.html").read_text()
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    return json.loads((folder / "result.json").read_text())


def test_reconstruct_retrieve_and_attention(trained: Path, place: Path, command: Callable) -> None:
    command("eval", "reconstruct", "runs/whole", "--ratio", "0.5", "--ratio", "0.75", "--show", "2")
    command("eval", "retrieve", "runs/whole")
    command("eval", "attention", "runs/whole", "--show", "2", "--layer", "2")
    filled = outcome(trained, "reconstruct")
    for ratio in ("0.5", "0.75"):
        for view in ("with", "without", "other"):
            assert 0 <= filled["metrics"][f"accuracy_{view}_image_{ratio}"] <= 1
        assert filled["hidden_words"][ratio] > 0 and filled["metrics"][f"image_mse_{ratio}"] > 0
    assert filled["hidden_words"]["0.5"] < filled["hidden_words"]["0.75"]
    found = outcome(trained, "retrieve")["metrics"]
    assert found["image_to_text_r1"] <= found["image_to_text_r5"] <= found["image_to_text_r10"]
    looked = outcome(trained, "attention")
    assert len(looked["by_layer"]["words_to_patches"]) == 4 and looked["settings"]["layer drawn"] == 2


def test_weights_go_out_and_a_run_begins_with_them(trained: Path, place: Path, command: Callable) -> None:
    for form in ("m3ae_public", "hf_vit"):
        command("weights", "export", "runs/whole", f"out/{form}", "--format", form)
        assert "Measured in training" in (place / "out" / form / "README.md").read_text()
    short = ("--set", "train.length=1 steps", "--set", "run.validate_every=0", "--set", "run.pictures_every=0")
    done = command("pretrain", "tiny.yaml", "--set", "name=again", "--init-from", "out/m3ae_public/model.pkl", *short)
    assert "init from" in done.stdout and "drawn anew: none; not used: none" in done.stdout
    wrong = ("--set", "name=wrong", "--set", "model.encoder.heads=2", "--init-from", "out/m3ae_public/model.pkl")
    refused = command("pretrain", "tiny.yaml", *wrong, code=2)
    assert "attention heads" in refused.stderr and "Traceback" not in refused.stderr
    assert main(["weights", "export", str(trained), str(place / "out" / "hf_vit"), "--format", "hf_vit"]) == 2
