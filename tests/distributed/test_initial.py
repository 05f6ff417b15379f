"""A run that begins with somebody's weights has the same first loss however it is split."""

from pathlib import Path

import pytest
import torch
from processes import run_ranks
from tiny import PATCH_DIM, experiment, global_batch, plain_model

from m3ae_scale.data.pack import pack
from m3ae_scale.interop.model_pkl import write_model_pkl
from m3ae_scale.model.losses import objective

FP32 = 1e-6  # of the loss: sums in another order


@pytest.mark.parametrize(("tensor", "stages"), [(1, [3]), (2, [1])])
def test_first_loss_is_that_of_one_process(tensor: int, stages: list[int], tmp_path: Path) -> None:
    tiny = experiment(seed=77)  # the ranks would draw other values
    model = plain_model(tiny).eval()
    values = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    write_model_pkl(values, tiny, 5, tmp_path / "model.pkl")
    batch = pack(global_batch(0), tiny.loss, PATCH_DIM)
    with torch.no_grad():
        expected = objective(model(batch), batch, tiny.loss).mean().item()
        drawn = plain_model(experiment()).eval()
        assert abs(objective(drawn(batch), batch, tiny.loss).mean().item() - expected) > 1e-3
    job = {"tensor": tensor, "stages": stages, "path": str(tmp_path / "model.pkl")}
    assert run_ranks(2, "on_initial:first_losses", job) == pytest.approx([expected] * len(stages), rel=FP32)
