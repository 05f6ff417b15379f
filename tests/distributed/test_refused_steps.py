"""A step that is not wanted, or whose gradient is not finite on one rank, changes nothing, on any rank, at any stage.

The curve is held against that of a bare torch loop which leaves out the same steps.
"""

from typing import Any

import pytest
from on_ranks import CLIP, LR
from processes import run_ranks
from test_layouts import BF16, FP32, relative
from tiny import experiment, plain_curve

STEPS, UNWANTED, BROKEN = 7, [2, 5], [3]


def run(stage: int, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "steps": STEPS, "unwanted": UNWANTED, "broken": BROKEN, **more}


@pytest.mark.parametrize("tensor", [1, 2])
def test_a_step_not_applied_changes_nothing(tensor: int) -> None:
    runs = [run(stage) for stage in range(4)] + [run(stage, bf16=True) for stage in (0, 2, 3)]
    if tensor == 1:
        runs = [{**each, "accumulation": 2} for each in runs] + [run(2, offload=1)]
    expected = plain_curve(experiment(), STEPS, LR, CLIP, not_applied=[*UNWANTED, *BROKEN])
    for job, result in zip(runs, run_ranks(2, "on_ranks:curves", {"tensor": tensor, "runs": runs}), strict=True):
        assert result["applied"] == [step not in UNWANTED + BROKEN for step in range(STEPS)], job
        assert relative(result["curve"], expected) <= (BF16 if job.get("bf16") else FP32), job
    applied = plain_curve(experiment(), STEPS, LR, CLIP)
    assert relative(applied, expected) > BF16  # or the comparison would say nothing
