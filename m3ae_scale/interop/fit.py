"""Fits somebody's weights to a model that is to be trained: by name, and only where they mean the same there."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m3ae_scale.config import Experiment
from m3ae_scale.errors import InputError
from m3ae_scale.interop.found import Found, listed, with_pixels
from m3ae_scale.interop.shapes import parameter_shapes

WORDS = "encoder.embed.text.weight"


def fit(found: Found, experiment: Experiment, vocabulary: int) -> tuple[Mapping[str, np.ndarray], str]:
    """Return the values with which the model of `experiment` begins, whole, by name, and a line that says what fits.

    Names that the file lacks are left to be drawn. Pixel normalisation is moved into the weights where it differs.
    Raises InputError for another shape, number of heads, vocabulary, or grid of stored positions.
    """
    shapes = parameter_shapes(experiment.model, vocabulary)
    _check_meaning(found, experiment)
    taken = [name for name in shapes if name in found.values]
    if not taken:
        raise InputError(f"{found.path}: no parameter has a name of this model; found {listed(list(found.values)[:3])}")
    for name in taken:
        if found.values[name].shape != shapes[name]:
            raise InputError(_other_shape(found, name, shapes[name]))
    augment = experiment.data.augment
    suited = with_pixels(found, augment.mean, augment.std)
    unused = [*(name for name in found.values if name not in shapes), *found.unused]
    step = "" if found.step is None else f", step {found.step}"
    line = (
        f"{found.path} ({found.kind}{step}): {len(taken)} of {len(shapes)} parameters taken; "
        f"drawn anew: {listed(name for name in shapes if name not in found.values)}; not used: {listed(unused)}"
        + "".join(f"; {note}" for note in suited.notes)
    )
    return {name: suited.values[name] for name in taken}, line


def _check_meaning(found: Found, experiment: Experiment) -> None:
    """What shapes do not show."""
    model = experiment.model
    for tower in ("encoder", "decoder"):
        theirs, ours = (found.model.get(tower) or {}).get("heads"), getattr(model, tower).heads
        if theirs is not None and theirs != ours:
            raise InputError(
                f"{found.path}: its {tower} has {theirs} attention heads, model.{tower}.heads is {ours}; "
                f"set model.{tower}.heads={theirs}"
            )
    if found.grid is not None and found.grid != model.grid:
        raise InputError(
            f"{found.path}: its positions are those of {found.grid} x {found.grid} patches, this model has "
            f"{model.grid} x {model.grid}; set model.image_size={found.grid * model.patch}"
        )
    if found.vocabulary is not None and _words(found.vocabulary) != _words(Path(experiment.data.tokenizer)):
        raise InputError(
            f"{found.path}: trained with the word pieces of {found.vocabulary}, data.tokenizer is "
            f"{experiment.data.tokenizer}; set data.tokenizer={found.vocabulary}"
        )


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []  # data.tokenizer is checked where it is loaded


def _other_shape(found: Found, name: str, shape: tuple[int, ...]) -> str:
    theirs = found.values[name].shape
    if name == WORDS:
        return (
            f"{found.path}: its vocabulary has {theirs[0]} words of width {theirs[1]}, this model's {shape[0]} of "
            f"width {shape[1]}; give its vocabulary as data.tokenizer, and its section model"
        )
    keys = {key: found.model[key] for key in ("encoder", "decoder", "image_size", "patch") if key in found.model}
    told = f"; there the section model holds {keys}" if keys else ""
    return f"{found.path}: {name} is {theirs} there, {shape} in this run's model{told}"
