"""Trained weights as other people's code reads them: one folder with the weights, their configuration and a card."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from safetensors.numpy import save_file

from m3ae_scale.config import Experiment
from m3ae_scale.errors import InputError
from m3ae_scale.interop.card import write_card
from m3ae_scale.interop.model_pkl import write_model_pkl
from m3ae_scale.interop.read import read_found
from m3ae_scale.interop.vit import (
    export_error,
    hugging_face_config,
    hugging_face_layout,
    hugging_face_preprocessing,
    mae_layout,
    timm_config,
)

FORMATS = ("m3ae_public", "timm", "hf_vit", "hf_vitmae")


def export_as(path: Path, form: str, output: Path) -> str:
    """Write the weights at `path`, a run or a checkpoint of ours, as the folder `output`; returns a line about it.

    The folder appears when it is complete. Raises InputError for weights without their experiment, a model that the
    format has no place for, or an output that exists.
    """
    if output.exists():
        raise InputError(f"{output}: exists; remove it or give another name")
    found = read_found(path)
    if found.experiment is None:
        raise InputError(
            f"{path}: does not tell its experiment; give a run folder, a checkpoint, or a file that `checkpoint "
            "export` wrote"
        )
    experiment = Experiment.model_validate(found.experiment)
    _check(form, experiment, output)
    aside = output.with_name(f"{output.name}.tmp-{uuid4().hex[:8]}")
    try:
        aside.mkdir(parents=True)
        error = _write(form, found.values, experiment, found.step or 0, aside)
        run = next((folder for folder in (path, *path.parents) if (folder / "experiment.yaml").is_file()), None)
        write_card(aside, form, experiment, found.step, run, error)
        aside.rename(output)
    except OSError as problem:
        raise InputError(f"{output}: cannot be written ({problem.strerror}); give a place with room") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return error


def _check(form: str, experiment: Experiment, output: Path) -> None:
    model = experiment.model
    if form == "hf_vitmae" and (model.output_head_depth or model.image_codebook):
        what = "output_head_depth" if model.output_head_depth else "image_codebook"
        raise InputError(
            f"{output}: ViTMAE has one linear layer to pixels, model.{what} is {getattr(model, what)}; export hf_vit"
        )


def _write(form: str, values: Mapping[str, np.ndarray], experiment: Experiment, step: int, folder: Path) -> str:
    if form == "m3ae_public":
        write_model_pkl(values, experiment, step, folder / "model.pkl")
        return "The values are copies: no rounding."
    decoder = form == "hf_vitmae"
    arrays = mae_layout(values, experiment, decoder)
    error = export_error(values, arrays, experiment)
    if form == "timm":
        _json(folder / "config.json", timm_config(experiment))
    else:
        arrays = hugging_face_layout(arrays)
        _json(folder / "config.json", hugging_face_config(experiment, decoder))
        _json(folder / "preprocessor_config.json", hugging_face_preprocessing(experiment))
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    return (
        f"A plain ViT with these weights differs from the encoder that was trained by {error:.1e} of its largest "
        "feature (float32, two random pictures)."
    )


def _json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
