"""A step never asks the device for a number: the host would wait there until everything before is done."""

from typing import Any

import pytest
import torch
from test_model import SAMPLES
from tiny_m3ae import PATCH_DIM, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from m3ae_scale.config import LossConfig
from m3ae_scale.data.pack import pack
from m3ae_scale.engine.recompute import apply_recompute
from m3ae_scale.model.losses import objective
from m3ae_scale.training.meters import LossSums

# What reads a value on the host, or makes a tensor of a size that only the device knows.
WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero", "allclose",
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Fails on an operation that a GPU would make the host wait for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function._opname not in WAITS, f"{function._opname} waits for the device"
        by_mask = function._opname in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert not by_mask, "indexing by a mask waits for the device"
        return function(*args, **(kwargs or {}))


def one_step(recompute: str) -> None:
    model, loss = tiny_model(drop_path=0.3, dropout=0.2), LossConfig(unpaired_text=0.25)
    apply_recompute(model, recompute)
    batch, sums = pack(SAMPLES, loss, PATCH_DIM), LossSums("cpu")
    with NoWaiting():
        losses = model(batch)
        each = objective(losses, batch, loss)
        each.mean().backward()
        sums.add(losses, each, batch)


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_a_micro_batch_is_trained_on_without_waiting(recompute: str) -> None:
    one_step(recompute)


def test_it_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3ae_scale.model.m3ae.normalise", lambda pixels, mean, std: pixels / float(pixels.sum() + 1))
    with pytest.raises(AssertionError, match="_local_scalar_dense waits"):
        one_step("none")
