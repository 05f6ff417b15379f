"""The figures of one training run that can be compared with those of others, from its metrics."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from m3ae_scale.config import ModelConfig
from m3ae_scale.sizes import model_parameters, tower_parameters

_CURVE = 60  # points kept of a run's curve


def run_figures(batch: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up a run of global batch `batch` from its `rows`, one a logged step as `read_metrics` gives them.

    Returns steps, samples, seconds (of training), loss (mean of the last tenth), the validation losses of the last
    step, samples_per_second and tokens_per_second (median of log windows, the first left out), step_seconds (median)
    with step_seconds_low and _high (10th and 90th of a hundred), curve ([[samples, seconds, loss], ...]), each where
    the rows have it.
    """
    logged = [row for row in rows if math.isfinite(row.get("loss", math.nan))]
    figures: dict[str, Any] = {"global_batch": batch}
    if not logged:
        return figures
    figures |= {"steps": logged[-1]["step"], "samples": logged[-1]["step"] * batch}
    figures["loss"] = fmean(row["loss"] for row in logged[-max(1, len(logged) // 10) :])
    if "seconds" in logged[-1]:
        figures["seconds"] = logged[-1]["seconds"]
    for key in ("samples_per_second", "tokens_per_second", "step_seconds"):
        values = [row[key] for row in logged if key in row]
        values = values[1:] or values  # the first window also builds kernels and fills buffers
        if values:
            figures[key] = median(values)
            if key == "step_seconds":
                figures |= {"step_seconds_low": _quantile(values, 0.1), "step_seconds_high": _quantile(values, 0.9)}
    validated = [row for row in rows if math.isfinite(row.get("validation_loss", math.nan))]
    if validated and validated[-1]["step"] == figures["steps"]:
        figures |= {key: value for key, value in validated[-1].items() if key.startswith("validation_")}
    figures["curve"] = _curve(logged, batch)
    return figures


def model_figures(model: ModelConfig, vocabulary: int) -> dict[str, Any]:
    """Describe a model: parameters (all), tower_parameters (encoder's and decoder's blocks), encoder_parameters.

    vocabulary: word pieces. Word embedding and text head are in `parameters` alone: they do not grow with the depth,
    and at small sizes they would hide what the towers do.
    """
    encoder, decoder = tower_parameters(model.encoder.shape), tower_parameters(model.decoder.shape)
    whole = model_parameters(
        model.encoder.shape,
        model.decoder.shape,
        vocabulary,
        model.patch_dim,
        model.output_head_depth,
        model.type_embedding,
    )
    return {"parameters": whole, "tower_parameters": encoder + decoder, "encoder_parameters": encoder}


def _curve(logged: Sequence[Mapping[str, Any]], batch: int) -> list[list[float]]:
    stride = max(1, math.ceil(len(logged) / _CURVE))
    kept = [*logged[::stride], *([logged[-1]] if (len(logged) - 1) % stride else [])]
    return [[row["step"] * batch, round(row.get("seconds", math.nan), 3), round(row["loss"], 5)] for row in kept]


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]
