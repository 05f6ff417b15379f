"""What saving costs: our checkpoint, ours in the background, and DeepSpeed's own, on the same engine in the same run.

    python benchmarks/checkpoint.py [--size base] [--nproc 2] [--rounds 3] [--folder FOLDER] [--out FILE.jsonl]

Per layout an engine is built with Adam's moments in place, and each way saves and loads in turn, round after round;
a figure is the median of the rounds, of the slowest rank (times) or of the rank that needs most (memory).

    stall     seconds that the ranks cannot train
    durable   seconds until the bytes are on the disk: ours flushes each file, DeepSpeed leaves that to a sync after it
    memory    peak of a rank's resident memory above what it was before (pages of the file cache do not count)
    load      seconds to load it back on the same layout; ours hashes every file first
"""

import argparse
import ctypes
import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from m3ae_scale.config import Experiment
from m3ae_scale.engine.build import Built, build
from m3ae_scale.engine.checkpoint import BackgroundSave, load_checkpoint, save_checkpoint
from m3ae_scale.engine.checkpoint.state import open_moments
from m3ae_scale.parallel.groups import Groups, close_groups, open_groups
from m3ae_scale.parallel.launch import find_ranks, is_launched, launch_local
from m3ae_scale.training.provenance import provenance

VOCABULARY = 30522  # BERT's
LAYOUTS = {"DP, ZeRO-1": (False, 1), "DP, ZeRO-2": (False, 2), "DP, ZeRO-3": (False, 3), "TP, ZeRO-1": (True, 1)}


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--nproc", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/m3ae_scale_checkpoints"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/checkpoint.jsonl"))
    parser.add_argument("--layout", choices=LAYOUTS, help="one layout; left out: all, each in processes of its own")
    options = parser.parse_args()
    if is_launched(os.environ):
        measure_layout(options)
        os._exit(0)  # as cli.main.program ends: Gloo's threads may abort a process that Python takes apart
    options.out.unlink(missing_ok=True)
    for layout in LAYOUTS:
        code = launch_local(options.nproc, [sys.executable, __file__, *sys.argv[1:], f"--layout={layout}"])
        if code:
            raise SystemExit(code)
    print_table([json.loads(line) for line in options.out.read_text().splitlines()])


def measure_layout(options: argparse.Namespace) -> None:
    """Measure every way on one layout, and append a row each to the output."""
    tensor_parallel, stage = LAYOUTS[options.layout]
    groups = open_groups(find_ranks(os.environ), options.nproc if tensor_parallel else 1)
    built = open_engine(options.size, groups, stage)
    folder = options.folder / "run"
    ways = {"ours": ours, "ours, in the background": background, "DeepSpeed": deepspeed}
    figures: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            figures[name].append(way(folder, built, groups))
            if groups.first:
                shutil.rmtree(folder)
            dist.barrier()
    if groups.first:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        facts = provenance()
        facts["hardware"]["disk"] = filesystem(options.folder)
        with open(options.out, "a") as file:
            for way, rounds in figures.items():
                row = {"way": way, "layout": options.layout, "ranks": options.nproc, "size": options.size}
                row |= {"parameters": built.parameters, "rounds": options.rounds}
                row |= {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
                file.write(json.dumps(row | {"provenance": facts}) + "\n")
    close_groups()


def ours(folder: Path, built: Built, groups: Groups) -> dict[str, float]:
    """Save by save_checkpoint."""
    watch = Watch(groups)
    path = save_checkpoint(folder, built, groups, {"step": 1})
    stall = watch.seconds()
    return watch.figures(stall, stall, folder) | {"load": timed(groups, lambda: load_checkpoint(path, built, groups))}


def background(folder: Path, built: Built, groups: Groups) -> dict[str, float]:
    """Save by BackgroundSave; what is left to wait for when the writing is done belongs to the stall."""
    watch = Watch(groups)
    pending = BackgroundSave(folder, built, groups, {"step": 1})
    stall = watch.seconds()
    pending._thread.join()
    dist.barrier()
    settled = time.perf_counter()
    path = pending.settle(wait=True)
    stall += watch.slowest(time.perf_counter() - settled)
    figures = watch.figures(stall, watch.seconds(), folder)
    assert path is not None
    return figures | {"load": timed(groups, lambda: load_checkpoint(path, built, groups))}


def deepspeed(folder: Path, built: Built, groups: Groups) -> dict[str, float]:
    """Save by DeepSpeed's engine, which writes a pickle per rank and topology."""
    watch = Watch(groups)
    built.engine.save_checkpoint(str(folder), tag="step", client_state={"step": 1})
    stall = watch.seconds()
    os.sync()
    figures = watch.figures(stall, watch.seconds(), folder)
    return figures | {"load": timed(groups, lambda: built.engine.load_checkpoint(str(folder), tag="step"))}


class Watch:
    """Time and resident memory of this rank from the moment it is made."""

    def __init__(self, groups: Groups):
        self._groups = groups
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        os.sync()
        dist.barrier()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        self._resident = resident("VmRSS")
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds until now, of the slowest rank."""
        return self.slowest(time.perf_counter() - self._start)

    def slowest(self, value: float) -> float:
        """The largest `value` of all ranks."""
        largest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return largest.item()

    def figures(self, stall: float, durable: float, folder: Path) -> dict[str, float]:
        """Put the figures of one save together."""
        memory = self.slowest(resident("VmHWM") - self._resident)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        dist.barrier()
        return {"stall": stall, "durable": durable, "memory_mb": memory / 1024, "disk_mb": size / 2**20}


def timed(groups: Groups, work: Callable[[], Any]) -> float:
    """Seconds that the slowest rank takes for `work`."""
    watch = Watch(groups)
    work()
    return watch.seconds()


def resident(key: str) -> int:
    """KiB of resident memory: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def open_engine(size: str, groups: Groups, stage: int) -> Built:
    """An fp32 engine as after one step."""
    experiment = Experiment.model_validate(
        {
            "name": "checkpoint",
            "model": {"size": size},
            "data": {"sources": [{"name": "none", "shards": "none"}], "tokenizer": "none"},
            "batch": {"global": groups.topology.data},
            "train": {"length": "1 steps"},
            "engine": {"deepspeed": "none"},
        }
    )
    config = {
        "train_batch_size": groups.topology.data,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 10**7},
    }
    built = build(experiment, VOCABULARY, groups, config)
    open_moments(built, 1)
    if stage < 3:
        built.engine.optimizer._lazy_init_hp_params_optimizer_state()
    return built


def filesystem(folder: Path) -> str:
    """Type of the file system that `folder` lies on."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(m[1]), m[2]) for m in mounts if str(folder.resolve()).startswith(m[1])]
    return max(inside)[1]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as Markdown."""
    print(
        "| layout | way | stall s | durable s | peak memory MB | on disk MB | load s |\n|---|---|---|---|---|---|---|"
    )
    for row in rows:
        cells = [row["layout"], row["way"], f"{row['stall']:.2f}", f"{row['durable']:.2f}"]
        cells += [f"{row['memory_mb']:.0f}", f"{row['disk_mb']:.0f}", f"{row['load']:.2f}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
