"""Saved while training goes on: the state of the moment it was asked for, published by settle and not before."""

from pathlib import Path

from on_ranks import CLIP, LR
from processes import run_ranks
from tiny import experiment, plain_curve


def test_the_state_is_that_of_the_moment_and_training_goes_on(tmp_path: Path) -> None:
    reference = plain_curve(experiment(), 4, LR, CLIP)[2:]
    *stages, failed = run_ranks(
        4, "on_checkpoints:save_in_the_background", {"tensor": 2, "folder": str(tmp_path)}, timeout=280
    )
    for stage, result in enumerate(stages):
        assert not result["differing"], f"ZeRO-{stage}: {result['differing'][:3]}"
        assert result["meanwhile"], f"ZeRO-{stage}: visible before it was settled"
        assert max(abs(a - b) / b for a, b in zip(result["curve"], reference, strict=True)) <= 1e-5
    assert failed["refused"].startswith("rank 1: ") and "File too large" in failed["refused"]
    assert failed["after"] == ["step_00000002", "step_00000002.2"]
