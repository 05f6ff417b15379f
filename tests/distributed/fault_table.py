"""Lets each fault happen to a run of its own, under each ZeRO stage, and writes down what was promised and what came.

    python tests/distributed/fault_table.py OUTPUT.md

Two ranks, a checkpoint every 4 steps. A run that a fault has ended is started once more, as a job that is requeued.
Its loss curve is then held against that of a run to which nothing happened.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from test_faults import STEPS, events, furnish, pretrain, rows

from m3ae_scale.errors import EXIT_HUNG, EXIT_STOPPED
from m3ae_scale.training.provenance import provenance

SAME = 1e-5  # of the loss; sums run in the same order, so the curves are usually equal
REFUSED = "the step is applied on no rank, its samples are listed, the run goes on"
REPLACED = "another worker goes on with the micro-batch, nothing changes"
BEGUN_AGAIN = "the run ends, says which rank and why, and goes on from the last checkpoint"


class Case(NamedTuple):
    """A fault and what is promised of it."""

    name: str
    fault: dict[str, Any]
    promise: str
    code: int = 0  # of the first life
    said: str = ""  # what the first life must print
    refused: bool = False  # the step is left out
    changes: tuple[str, ...] = ()


def cases(rng: random.Random) -> list[Case]:
    """Choose rank and step of every fault."""

    def at(fault: str, first: int = 2, **more: Any) -> dict[str, Any]:
        return {"fault": fault, "rank": rng.randrange(2), "step": rng.randrange(first, STEPS), **more}

    rollback = ("guard.policy=rollback",)
    worker = ("data.workers=1",)
    hang = ("guard.hang_after=20",)
    return [
        Case("NaN in the data of one rank", at("nan_data"), REFUSED, 0, "is not finite", True),
        Case("NaN in the gradient of one rank", at("nan_gradient"), REFUSED, 0, "is not finite", True),
        Case("loss 300 times too high", at("spike", 9, factor=300.0), REFUSED, 0, "spreads above", True),
        Case("the same, told to roll back", at("spike", 9, factor=300.0), REFUSED, 0, "back to the", True, rollback),
        Case("the clock jumps a day back", at("clock", seconds=-86400.0), "nothing changes"),
        Case("the clock jumps a day ahead", at("clock", seconds=86400.0), "nothing changes"),
        Case("a rank hangs", at("hang"), BEGUN_AGAIN, EXIT_HUNG, "is behind, at step", changes=hang),
        Case("a rank raises", at("crash"), BEGUN_AGAIN, 1, "failed first"),
        Case("kill -9 of a data worker", at("kill_worker"), REPLACED, 0, "a data worker process", changes=worker),
        Case("kill -9 of a rank", at("kill"), BEGUN_AGAIN, 137, "ended by SIGKILL"),
        Case(
            "SIGUSR1 to one rank while it validates",
            {"fault": "signal_in_validation", "rank": 1, "step": 8},
            "all ranks stop at one step after a checkpoint",
            EXIT_STOPPED,
            "checkpoint written",
        ),
        Case(
            "SIGUSR1 to one rank while it saves",
            {"fault": "signal_in_save", "rank": 1, "step": 4},
            "all ranks stop at one step after a checkpoint",
            EXIT_STOPPED,
            "checkpoint written",
        ),
    ]


def main() -> None:
    """Run every case under every stage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, lines = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as folder:
        place = furnish(Path(folder))
        for stage in range(4):
            engine = f"engine.deepspeed=zero{stage}_fp32"
            pretrain(place, f"undisturbed{stage}", [], engine)
            undisturbed = rows(place, f"undisturbed{stage}")
            for number, case in enumerate(cases(rng)):
                lines.append(row(place, f"run{stage}_{number}", stage, case, engine, undisturbed))
                print(lines[-1], flush=True)
    write_down(options.output, lines)


def row(place: Path, name: str, stage: int, case: Case, engine: str, undisturbed: dict[int, dict[str, Any]]) -> str:
    """Run one case; returns its row of the table."""
    said = pretrain(place, name, [case.fault], engine, *case.changes, code=case.code)
    if case.said not in said:
        raise AssertionError(f"{case.name}: expected to read {case.said!r} in\n{said}")
    lost, step = 0, case.fault["step"]
    if case.code:
        reached = max(rows(place, name), default=0)
        again = pretrain(place, name, [], engine)
        found = [line for line in again.splitlines() if ", resumed at step " in line]
        lost = reached - (int(found[0].rsplit(" ", 1)[1]) if found else 0)
    trained = rows(place, name)
    if max(trained) != STEPS:
        raise AssertionError(f"{case.name}: ended at step {max(trained)} of {STEPS}")
    if case.refused:
        if [event["step"] + 1 for event in events(place, name)] != [step]:
            raise AssertionError(f"{case.name}: {events(place, name)}")
        came, until = "as promised", step
    else:
        came, until = "as promised, the loss curve is that of the undisturbed run", STEPS + 1
    for number in range(1, until):  # past a step that is left out the curve is another one
        ours, theirs = trained[number]["loss"], undisturbed[number]["loss"]
        if abs(ours - theirs) > SAME * theirs:
            raise AssertionError(f"{case.name}: loss {ours} for {theirs} at step {number}")
    return f"| {case.name} (rank {case.fault['rank']}, step {step}) | {stage} | {case.promise} | {came} | {lost} |"


def write_down(path: Path, lines: list[str]) -> None:
    """Write the table with its provenance."""
    facts = provenance()
    head = [
        "# One fault at a time",
        "",
        "Two ranks, 16 steps, a checkpoint every 4. Steps lost: trained, and trained again after the restart.",
        "kill -9 at 200 random moments is in checkpoint_faults.md; flipped bits, truncated files, a full disk and",
        "damaged shards are tests that run every time (tests/unit/engine, tests/distributed, tests/unit/data).",
        "",
        f"`make faults`, {facts['date']}, gloo on {facts['hardware']['cpu']}, commit",
        f"{facts['git']['commit'] if facts['git'] else 'unknown'}.",
        "",
        "| fault | ZeRO stage | promised | came | steps lost |",
        "|---|---|---|---|---|",
    ]
    path.write_text("\n".join(head + lines) + "\n")


if __name__ == "__main__":
    main()
