"""Kills a run that saves after every step, at random moments, resumes it, and holds the end against a run left alone.

    python tests/distributed/kill_while_saving.py FOLDER --ranks 2 --kills 200

Each life of the run resumes from the newest good checkpoint. It is ended by kill -9 of one rank (the others follow
a moment later, as under a launcher) or of all at once. Checked after each: everything published is good, and nothing
that was said to be saved is lost. In the end: the state is bit for bit that of a run that nobody killed.
Ranks are forked from this process, which has torch and DeepSpeed imported, so that a life costs two seconds.
"""

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ["OMP_NUM_THREADS"] = "1"

from on_checkpoints import differing, open_layout, train

from m3ae_scale.engine.checkpoint import latest_checkpoint, load_latest, prune_checkpoints, save_checkpoint
from m3ae_scale.engine.checkpoint.folder import checkpoints_folder, list_checkpoints
from m3ae_scale.engine.checkpoint.format import read_manifest, require_good
from m3ae_scale.parallel.groups import close_groups, open_groups
from m3ae_scale.parallel.launch import Ranks, find_ranks
from m3ae_scale.parallel.spawn import free_port


def live(folder: Path, last: int, say: int, every_step: bool) -> None:
    """Resume, then train and save up to step `last`, writing what happens, a line each, to descriptor `say`."""
    groups = open_groups(find_ranks(os.environ), 1)
    built = open_layout(groups, {"stage": 2})

    def tell(text: str) -> None:
        if groups.first:
            os.write(say, f"{text}\n".encode())

    progress = load_latest(folder, built, groups)
    done = progress["step"] if progress else 0
    tell(f"resumed {done}")
    while done < last:
        tell(f"training {done}")
        train(built, groups, done, done + 1)
        done += 1
        if every_step or done == last:
            tell(f"saving {done}")
            save_checkpoint(folder, built, groups, {"step": done})
            tell(f"saved {done}")
            if groups.first:
                prune_checkpoints(folder, keep=3)
    close_groups()


def start(folder: Path, ranks: int, last: int, every_step: bool = True) -> tuple[list[int], int]:
    """Fork the ranks of one life; returns their process ids and the descriptor to read from."""
    port = free_port()
    reader, writer = os.pipe()
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.environ |= Ranks(rank, ranks, rank, ranks, "127.0.0.1", port, "fork").environment()
                live(folder, last, writer, every_step)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    os.close(writer)
    return children, reader


def read_lines(reader: int, until: str | None = None) -> list[str]:
    """Read what was told, to the end, or to the first line that begins with `until`."""
    text = b""
    while data := os.read(reader, 2**16):
        text += data
        if until is not None and any(line.startswith(until) for line in text.decode().splitlines()):
            break
    return text.decode().splitlines()


def kill(children: list[int], rng: random.Random) -> str:
    """End one rank, and soon after the others, or all at once."""
    victim = rng.choice([None, *range(len(children))]) if len(children) > 1 else None
    if victim is not None:
        os.kill(children[victim], signal.SIGKILL)
        time.sleep(0.1)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return "all" if victim is None else f"rank {victim}"


def check_after_kill(folder: Path, lines: list[str]) -> dict[str, Any]:
    """Hold what is on the disk against what was said; returns the event."""
    said = {word: [int(line.split()[1]) for line in lines if line.startswith(word)] for word in ("saved", "saving")}
    resumed = int(lines[0].split()[1])
    trained = max(said["saving"], default=resumed)  # steps taken in memory, whose save had at least begun
    promised = max(said["saved"], default=resumed)
    for path, _ in list_checkpoints(folder):
        require_good(path)
    newest = latest_checkpoint(folder)
    kept = read_manifest(newest).step if newest else 0
    if kept < promised:
        raise AssertionError(f"step {promised} was said to be saved, the newest good checkpoint is of step {kept}")
    half = any(".tmp-" in path.name for path in checkpoints_folder(folder).iterdir()) if newest else False
    return {"during": lines[-1].split()[0], "resumed": resumed, "kept": kept, "lost": trained - kept, "half": half}


def main() -> None:
    """Kill, resume, compare; prints the result as one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, events = random.Random(options.seed), []
    run = options.folder / "killed"
    for _ in range(options.kills):
        children, reader = start(run, options.ranks, last=10**6)
        lines = read_lines(reader, until="resumed")
        time.sleep(rng.uniform(0.0, 0.8))
        victim = kill(children, rng)
        lines += read_lines(reader)
        os.close(reader)
        events.append({"killed": victim, **check_after_kill(run, lines)})
    last = max(event["kept"] for event in events) + 2
    finals = []
    for folder, every_step in ((run, True), (options.folder / "left_alone", False)):
        children, reader = start(folder, options.ranks, last, every_step)
        read_lines(reader)
        if any(os.waitpid(child, 0)[1] for child in children):
            raise SystemExit("a run that nobody killed failed")
        finals.append(latest_checkpoint(folder))
    print(json.dumps({"events": events, "steps": last, "differing": differing(finals[0], finals[1])}))


if __name__ == "__main__":
    main()
