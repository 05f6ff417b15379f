"""Hands a job to sbatch: the shipped script, a check that SLURM would take it, then the submission."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from m3ae_scale.errors import InputError
from m3ae_scale.slurm.starts import CHAIN


def find_script(name: str) -> Path:
    """Find the batch script `name`: as given, else the shipped one of that name. Raises InputError."""
    places = (
        Path(),
        Path(__file__).resolve().parents[2],
        Path(sys.prefix) / "share" / "m3ae_scale",
    )
    for place in places:
        if (place / name).is_file():
            return place / name
    raise InputError(f"--script: found no {name}; run from the folder that holds slurm/, or give the script's path")


def count_words(vocabulary: str) -> int:
    """Count the word pieces of a vocab.txt. Raises InputError where it cannot be read."""
    try:
        return sum(1 for line in Path(vocabulary).read_text(encoding="utf-8").splitlines() if line)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "no text"
        raise InputError(f"data.tokenizer: cannot read {vocabulary} ({why}); is this the folder to run from?") from None


def require_sbatch() -> None:
    """Raise InputError where this machine has no sbatch."""
    if shutil.which("sbatch") is None:
        raise InputError(
            "sbatch: not found on this machine; submit from a login node of your cluster, look with --dry-run, or try "
            'it here: eval "$(slurm/local_cluster/start 2)"'
        )


def check(command: Sequence[str]) -> str:
    """Ask `sbatch --test-only` whether the job could run; returns what it says. Raises InputError with its reason."""
    done = subprocess.run([command[0], "--test-only", *command[1:]], capture_output=True, text=True, check=False)
    said = _said(done)
    if done.returncode:
        raise InputError(f"sbatch would not take the job: {said}")
    return said


def submit(command: Sequence[str], script: Path, chain: str | None = None) -> str:
    """Run sbatch; returns the number of the job. The job gets the site.sh beside `script`, and the name of its chain."""
    environment = dict(os.environ)
    if (script.parent / "site.sh").is_file():
        environment.setdefault("M3AE_SITE", str((script.parent / "site.sh").resolve()))
    if chain is not None:
        environment[CHAIN] = chain
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise InputError(f"sbatch did not take the job: {_said(done)}")
    match = re.search(r"Submitted batch job (\d+)", done.stdout)
    return match[1] if match else done.stdout.strip()


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the message of sbatch as one line, without its prefixes."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line).strip() for line in (done.stdout + done.stderr).splitlines()]
    # "Batch job submission failed" goes with the reason; "allocation failure" alone says nothing more.
    return "; ".join(dict.fromkeys(line for line in lines if line and line != "allocation failure"))
