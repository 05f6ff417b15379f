"""A tiny model, invented samples of every kind, and a plain torch loop over them: what the layouts are held against."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch

from m3ae_scale.config import Experiment
from m3ae_scale.data.pack import pack
from m3ae_scale.data.sample import Sample
from m3ae_scale.engine.build import build_model, parameter_groups
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import M3AE, PlainLayers
from m3ae_scale.model.init import draw
from m3ae_scale.model.losses import objective

GLOBAL_BATCH, VOCABULARY, PATCHES, PATCH_DIM = 16, 101, 16, 192
KINDS = ("paired", "image", "text", "no_words", "all_visible")


def experiment(**changes: Any) -> Experiment:
    """Dropped values and unequal loss weights included; `changes` replace whole sections."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "size": "tiny",
            "image_size": 32,
            "patch": 8,
            "text_length": 16,
            "unpaired_text_length": 24,
            "drop_path": 0.1,
            "dropout": 0.1,
        },
        "loss": {"image": 1.0, "text": 0.5, "unpaired_text": 0.3},
        "data": {"sources": [{"name": "none", "shards": "none"}], "tokenizer": "none"},
        "batch": {"global": GLOBAL_BATCH},
        "train": {"length": "20 steps"},
        "engine": {"deepspeed": "none"},
    }
    return Experiment.model_validate(values | changes)


def sample(number: int, kind: str) -> Sample:
    """Invent sample `number`."""
    rng = np.random.default_rng(number)
    image, text = kind != "text", kind not in ("image", "no_words")
    words = int(rng.integers(1, 25 if kind == "text" else 17))
    patches = rng.integers(0, 255, (PATCHES, PATCH_DIM)).astype(np.uint8)
    seen_patches, seen_words = rng.random(PATCHES) > 0.75, rng.random(words) > 0.75
    if kind == "all_visible":
        seen_patches[:], seen_words[:] = True, True
    return Sample(
        name=f"{kind}-{number}",
        patches=patches if image else None,
        words=rng.integers(0, VOCABULARY, words).astype(np.int32) if text else None,
        visible_patches=seen_patches if image else None,
        visible_words=seen_words if text else None,
        seed=int(rng.integers(1 << 62)),
    )


def global_batch(step: int) -> list[Sample]:
    """The samples of one optimizer step: five kinds in turn, four different batches."""
    return [sample(1000 * (step % 4) + i, KINDS[i % len(KINDS)]) for i in range(GLOBAL_BATCH)]


def plain_model(tiny: Experiment) -> M3AE:
    """The model as one process holds it, with its initial values."""
    kernels = choose(tiny.kernels, "cpu", torch.float32)
    model = build_model(tiny, VOCABULARY, PlainLayers(), kernels)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(draw(name, parameter.shape, tiny.seed))
    return model


def gradients(tiny: Experiment, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """The gradients of one process for `samples` as one global batch."""
    model = plain_model(tiny)
    batch = pack(samples, tiny.loss, PATCH_DIM)
    objective(model(batch), batch, tiny.loss).mean().backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}


def plain_curve(tiny: Experiment, steps: int, lr: float, clip: float, not_applied: Collection[int] = ()) -> list[float]:
    """The loss curve of a bare torch loop: no engine, no ranks. Steps `not_applied` leave everything as it was."""
    model = plain_model(tiny)
    groups = parameter_groups(model, tiny.optimizer.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=tiny.optimizer.betas, eps=tiny.optimizer.eps)
    curve = []
    for step in range(steps):
        batch = pack(global_batch(step), tiny.loss, PATCH_DIM)
        loss = objective(model(batch), batch, tiny.loss).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        if step not in not_applied:
            optimizer.step()
        curve.append(loss.item())
    return curve
