"""Saved on one topology and ZeRO stage, resumed on another: the loss curve of the undisturbed run, bit-equal state.

The short version resumes each of the 16 layouts from 2 others, so that every pair of topologies and every pair of
stages meets. CHECKPOINT_MATRIX=full resumes each from all 16 (`make checkpoint-matrix` writes the table down).
"""

import os
from pathlib import Path
from typing import Any

import pytest
from on_ranks import CLIP, LR
from processes import run_ranks
from tiny import experiment, plain_curve

from m3ae_scale.training.provenance import provenance

AT, END = 4, 8  # saved after 4 steps, while Adam's bias correction is still large, and resumed for 4 more
FP32 = 1e-5  # of the loss: sums over ranks run in another order; measured 3e-7
BF16 = 5e-3  # 8 bits of mantissa, see test_layouts.py

TOPOLOGIES = {"1": (1, 1), "DP2": (2, 1), "TP2": (2, 2), "TP2xDP2": (4, 2)}  # name -> ranks, tensor parallel
MATRIX = {f"{topology} ZeRO-{stage}": {"stage": stage} for topology in TOPOLOGIES for stage in range(4)}
OTHERS = {  # beside the matrix: another precision, and the optimizer on the host
    "DP2 ZeRO-0 bf16": {"stage": 0, "bf16": True},
    "DP2 ZeRO-0 bf16 fused": {"stage": 0, "bf16": True, "fused": True},
    "DP2 ZeRO-2 bf16": {"stage": 2, "bf16": True},
    "DP2 ZeRO-3 bf16": {"stage": 3, "bf16": True},
    "DP2 ZeRO-2 offload": {"stage": 2, "offload": 1},
    "DP2 ZeRO-3 offload": {"stage": 3, "offload": 1},
    "DP2 ZeRO-3 offload of 40%": {"stage": 3, "offload": 0.4},
}
LAYOUTS = MATRIX | OTHERS
OTHER_PAIRS = [
    ("DP2 ZeRO-0 bf16", "DP2 ZeRO-0 bf16"),
    ("DP2 ZeRO-3 bf16", "DP2 ZeRO-0 bf16"),
    ("DP2 ZeRO-0 bf16", "DP2 ZeRO-0 bf16 fused"),
    ("DP2 ZeRO-0 bf16 fused", "DP2 ZeRO-3 bf16"),
    ("DP2 ZeRO-0 bf16", "DP2 ZeRO-2 bf16"),
    ("DP2 ZeRO-2 bf16", "DP2 ZeRO-3 bf16"),
    ("DP2 ZeRO-3 bf16", "DP2 ZeRO-3 bf16"),
    ("DP2 ZeRO-2 bf16", "DP2 ZeRO-1"),
    ("TP2 ZeRO-3", "DP2 ZeRO-2 bf16"),
    ("DP2 ZeRO-2 offload", "DP2 ZeRO-3"),
    ("DP2 ZeRO-0", "DP2 ZeRO-3 offload"),
    ("DP2 ZeRO-3 offload", "DP2 ZeRO-2 offload"),
    ("1 ZeRO-0", "DP2 ZeRO-2 offload"),
    ("DP2 ZeRO-0 bf16", "DP2 ZeRO-3 offload"),
    ("DP2 ZeRO-3 offload", "DP2 ZeRO-3 offload of 40%"),
    ("DP2 ZeRO-3 offload of 40%", "DP2 ZeRO-3 offload of 40%"),
    ("DP2 ZeRO-3 offload of 40%", "DP2 ZeRO-1"),
]
FULL = os.environ.get("CHECKPOINT_MATRIX") == "full"


def pairs_to(topology: str) -> list[tuple[str, str]]:
    """List (saved on, resumed on) for every layout of `topology`."""
    names, number = list(TOPOLOGIES), list(TOPOLOGIES).index(topology)
    pairs = []
    for stage in range(4):
        some = [f"{names[(number + k) % 4]} ZeRO-{(stage + number + k) % 4}" for k in (stage, (stage + 1) % 4)]
        pairs += [(source, f"{topology} ZeRO-{stage}") for source in (MATRIX if FULL else some)]
    return pairs + [pair for pair in OTHER_PAIRS if topology_of(pair[1]) == topology]


def topology_of(layout: str) -> str:
    return layout.split()[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder: Path) -> dict[str, list[float]]:
    """Train and save every layout; returns the curve of each, undisturbed."""
    curves: dict[str, list[float]] = {}
    for topology, (world, tensor) in TOPOLOGIES.items():
        runs = {name: run for name, run in LAYOUTS.items() if topology_of(name) == topology}
        job = {"tensor": tensor, "runs": runs, "folder": str(folder), "at": AT, "end": END}
        curves |= run_ranks(world, "on_checkpoints:save_all", job, timeout=400)
    return curves


def resume(folder: Path, topology: str, pairs: list[tuple[str, str]]) -> list[dict[str, Any]]:
    world, tensor = TOPOLOGIES[topology]
    job: dict[str, Any] = {"tensor": tensor, "folder": str(folder), "name": topology, "at": AT, "end": END}
    job["pairs"] = [
        (LAYOUTS[target], str(folder / source / "checkpoints" / f"step_{AT:08d}")) for source, target in pairs
    ]
    return run_ranks(world, "on_checkpoints:resume_all", job, timeout=3000 if FULL else 400)


def relative(curve: list[float], reference: list[float]) -> float:
    return max(abs(ours - theirs) / theirs for ours, theirs in zip(curve, reference, strict=True))


@pytest.mark.timeout(3600 if FULL else 900)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_resumed_on_another_layout(topology: str, folder: Path, saved: dict[str, list[float]]) -> None:
    undisturbed = plain_curve(experiment(), END, LR, CLIP)  # one process, no engine, no checkpoint
    pairs, table = pairs_to(topology), []
    for (source, target), result in zip(pairs, resume(folder, topology, pairs), strict=True):
        case = f"{source} -> {target}"
        assert result["progress"] == {"step": AT, "cursor": {"from": source}}
        assert not result["differing"], f"{case}: loaded and saved again, these differ: {result['differing'][:3]}"
        rounded = "bf16" in case
        reference = saved["DP2 ZeRO-2 bf16"] if rounded else undisturbed
        difference = relative(result["curve"], reference[AT:])
        assert difference <= (BF16 if rounded else FP32), f"{case}: the curve differs by {difference:.1e}"
        if source == target:
            assert result["curve"] == saved[source][AT:], f"{case}: the same layout, but not bit-equal"
        table.append({"saved": source, "resumed": target, "difference": difference})
    if output := os.environ.get("CHECKPOINT_MATRIX_OUTPUT"):
        write_down(Path(output), topology, table)


def write_down(path: Path, topology: str, table: list[dict[str, Any]]) -> None:
    """Append the rows of `topology` to a Markdown table, which the first topology begins."""
    lines = []
    if topology == next(iter(TOPOLOGIES)):
        path.write_text("")
        facts = provenance()
        versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "deepspeed", "megatron-core"))
        lines = [
            "# Saved on one layout (columns), resumed on another (rows)",
            "",
            f"Largest relative difference of the loss over {END - AT} steps after the resume from the undisturbed run",
            f"of one process without DeepSpeed, fp32; allowed {FP32:g}. In every cell the state, loaded and saved",
            "again, was equal to the checkpoint bit for bit. DP: data parallel, TP: tensor parallel, Z: ZeRO stage.",
            "",
            f"`make checkpoint-matrix`, {facts['date']}, gloo on {facts['hardware']['cpu']}, {versions}, commit",
            f"{facts['git']['commit'] if facts['git'] else 'unknown'}.",
            "",
            "| | " + " | ".join(short(name) for name in MATRIX) + " |",
            "|---" * (len(MATRIX) + 1) + "|",
        ]
    for target in (name for name in MATRIX if topology_of(name) == topology):
        cells = {row["saved"]: f"{row['difference']:.0e}" for row in table if row["resumed"] == target}
        lines.append(f"| {short(target)} | " + " | ".join(cells.get(source, "") for source in MATRIX) + " |")
    with open(path, "a") as file:
        file.write("\n".join(lines) + "\n")


def short(layout: str) -> str:
    return layout.replace("ZeRO-", "Z")
