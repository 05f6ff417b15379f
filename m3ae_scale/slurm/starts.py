"""Counts the starts of a job, so that one that gains nothing stops instead of being requeued for ever.

RUN/starts.jsonl has a row a start: {"time", "submission", "job", "restart", "nodes", "checkpoint"}, where `checkpoint`
names the newest one at that moment, and `submission` stays the same through requeues and along a chain of jobs.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from m3ae_scale.engine.checkpoint.folder import list_checkpoints
from m3ae_scale.errors import InputError

FILE = "starts.jsonl"
CHAIN = "M3AE_CHAIN"  # set by `slurm submit --chain`: one name for all jobs of the chain


def note_start(run_folder: Path, environ: Mapping[str, str], nodes: int, limit: int) -> str | None:
    """Write down this start; returns the name of the newest checkpoint, None where there is none yet.

    Raises InputError when the last `limit` starts of this submission have brought no newer checkpoint.
    """
    newest = next((path.name for path, manifest in list_checkpoints(run_folder) if manifest is not None), None)
    job = environ.get("SLURM_JOB_ID", "none")
    submission = environ.get(CHAIN) or job
    idle = idle_starts(_read(run_folder / FILE), submission, newest)
    if idle >= limit:
        since = f"since the checkpoint {newest}" if newest else "without a checkpoint so far"
        raise InputError(
            f"{run_folder}: {idle} starts {since} have gained nothing, and job {job} does not try again; find the "
            f"cause in the logs of its jobs, then submit it anew"
        )
    row = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "submission": submission,
        "job": job,
        "restart": int(environ.get("SLURM_RESTART_COUNT", "0")),
        "nodes": nodes,
        "checkpoint": newest,
    }
    run_folder.mkdir(parents=True, exist_ok=True)
    with open(run_folder / FILE, "a") as file:
        file.write(json.dumps(row) + "\n")
    return newest


def idle_starts(rows: list[dict[str, Any]], submission: str, newest: str | None) -> int:
    """Count the last starts of `submission` that found the checkpoint which is `newest` now: they gained nothing."""
    count = 0
    for row in reversed(rows):
        if row.get("submission") != submission or row.get("checkpoint") != newest:
            break
        count += 1
    return count


def _read(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # a start that was killed inside its line
    return rows
