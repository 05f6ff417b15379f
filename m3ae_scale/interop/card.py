"""The model card that travels with exported weights: what they are, from what data, how good, and where from."""

import json
from pathlib import Path
from typing import Any

from m3ae_scale.config import Experiment
from m3ae_scale.version import __version__

_SHOWN = ("loss", "image_loss", "text_loss", "text_accuracy")
_LIBRARY = {"timm": "timm", "hf_vit": "transformers", "hf_vitmae": "transformers", "m3ae_public": "flax"}
_USE = {
    "timm": 'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()\n'
    "features = model.forward_features(images)  # (n, 1 + patches, dim), CLS first",
    "hf_vit": "from transformers import ViTModel\n\n"
    'model = ViTModel.from_pretrained("FOLDER", add_pooling_layer=False).eval()\n'
    "features = model(images).last_hidden_state  # (n, 1 + patches, dim), CLS first",
    "hf_vitmae": "from transformers import ViTMAEForPreTraining\n\n"
    'model = ViTMAEForPreTraining.from_pretrained("FOLDER").eval()\n'
    "patches = model(images).logits  # (n, patches, patch x patch x 3), normalised per channel",
    "m3ae_public": "import pickle  # beside the code of young-geng/m3ae_public\n\n"
    'params = pickle.load(open("FOLDER/model.pkl", "rb"))["state"].params',
}
_MADE = {
    "timm": "The encoder alone, as a ViT for images: its words stayed behind.",
    "hf_vit": "The encoder alone, as a ViT for images: its words stayed behind.",
    "hf_vitmae": "Encoder and decoder for images: words stayed behind.",
    "m3ae_public": "The whole model, for the fine-tuning and linear probe of the official code; no optimizer state.",
}


def write_card(folder: Path, form: str, experiment: Experiment, step: int | None, run: Path | None, error: str) -> None:
    """Write `folder`/README.md for weights of `experiment` in the format `form`.

    run: the run folder, whose last metrics and provenance are told; error: what is known of the conversion's error.
    """
    model = experiment.model
    sources = ", ".join(
        f"{source.name} ({source.kind}, weight {source.weight:g})" for source in experiment.data.sources
    )
    rows = [
        ("encoder", _tower(model.encoder)),
        ("decoder", _tower(model.decoder)),
        ("images", f"{model.image_size} x {model.image_size} pixels in patches of {model.patch}"),
        ("pixel mean, std", f"{list(experiment.data.augment.mean)}, {list(experiment.data.augment.std)}"),
        ("text", f"up to {model.text_length} word pieces"),
        ("trained on", sources),
        ("masked", f"{experiment.mask.image_ratio:.0%} of the patches, {experiment.mask.text_ratio:.0%} of the words"),
        ("length", f"{'?' if step is None else step} steps of {experiment.batch.global_} samples"),
        (
            "optimizer",
            f"AdamW, lr {experiment.optimizer.lr:g} per 256 samples, decay {experiment.optimizer.weight_decay}",
        ),
    ]
    text = [
        "---",
        f"library_name: {_LIBRARY[form]}",
        "tags: [masked-autoencoder, multimodal, m3ae, image-feature-extraction]",
        "---",
        "",
        f"# {experiment.name}",
        "",
        "A Multimodal Masked Autoencoder (M3AE, Geng et al. 2022, arXiv 2205.14204): one transformer over image "
        f"patches and words, pretrained by filling in what was masked. {_MADE[form]}",
        "",
        "```python",
        _USE[form].replace("FOLDER", folder.name),
        "```",
        "",
        *_table(("", ""), rows),
        "",
        "## Measured in training",
        "",
        *(_metrics(run) or ["No metrics lay beside the checkpoint."]),
        "",
        "Not measured here: downstream accuracy, and what biases the data brought along.",
        "",
        "## Where it comes from",
        "",
        f"Exported by m3ae_scale {__version__}. {error}",
        *_provenance(run),
        "",
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")


def _tower(tower: Any) -> str:
    return f"{tower.dim} wide, {tower.depth} blocks, {tower.heads} heads, feed-forward {tower.mlp_dim}"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _metrics(run: Path | None) -> list[str]:
    """The last value of each loss and of its validation, with the step it was measured at."""
    rows = _lines(run / "metrics.jsonl") if run is not None else []
    last = {key: (row[key], row.get("step")) for row in rows for key in row}
    found = [
        (key.replace("_", " "), f"{last[key][0]:.4f} at step {last[key][1]}")
        for key in (*_SHOWN, *(f"validation_{name}" for name in _SHOWN))
        if isinstance(last.get(key, (None,))[0], int | float)
    ]
    return _table(("metric", "last value"), found) if found else []


def _provenance(run: Path | None) -> list[str]:
    path = run / "provenance.json" if run is not None else None
    if path is None or not path.is_file():
        return []
    facts = json.loads(path.read_text())
    commit = (facts.get("git") or {}).get("commit")
    versions = ", ".join(f"{name} {version}" for name, version in (facts.get("versions") or {}).items() if version)
    lines = [f"Code: commit {commit}." if commit else "", f"Trained with {versions}." if versions else ""]
    return ["", *(line for line in lines if line)]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
