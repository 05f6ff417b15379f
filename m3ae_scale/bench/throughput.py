"""Measures one cell as a rank: `python -m m3ae_scale.bench.throughput CELL_JSON OUTPUT`.

The real engine takes real optimizer steps on batches that lie on the device: no loader, no log, no checkpoint. Rates
are those of all devices together; MFU counts useful tokens only (model/flops.py), per device.
"""

import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle, pairwise
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from m3ae_scale.batch import Batch
from m3ae_scale.bench.grid import ThroughputCell, cell_of
from m3ae_scale.bench.power import PowerReading
from m3ae_scale.bench.results import append_row
from m3ae_scale.bench.synthetic import batches
from m3ae_scale.config import Experiment
from m3ae_scale.engine.build import Built, build
from m3ae_scale.engine.deepspeed_config import resolve
from m3ae_scale.engine.step import set_lr, step
from m3ae_scale.errors import EXIT_MISTAKE, InputError
from m3ae_scale.kernels.peak import matmul_ceiling, peak_flops, synchronise
from m3ae_scale.model.flops import hardware_flops, step_flops, work_of
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import Groups, close_groups, open_groups
from m3ae_scale.parallel.launch import find_ranks

BENCH = "throughput"
EXIT_MEMORY = 77  # this cell does not fit
VOCABULARY = 30522  # BERT's
_DIFFERENT = 6  # micro-batches in turn: lengths differ from step to step, as in training


class Timed(NamedTuple):
    """Timed optimizer steps, and the batch of each."""

    seconds: list[float]
    batches: list[Batch]
    loss: float  # of the last step, per sample


def main(cell_text: str, output: str) -> int:
    """Measure, and append the row on the first rank; returns an exit code."""
    cell = cell_of(cell_text)
    groups = open_groups(find_ranks(os.environ), cell.tensor_parallel)
    try:
        values = measure(cell, groups)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return EXIT_MEMORY
    if groups.first:
        append_row(output, BENCH, asdict(cell), values)
    close_groups()
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """Tell a device's or the host's lack of memory from other errors."""
    said = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "out of memory" in said or "allocate memory" in said
    )


def measure(cell: ThroughputCell, groups: Groups) -> dict[str, Any]:
    """Measure a cell; every rank must call it, and every rank gets the figures."""
    experiment, device = experiment_of(cell), groups.device
    dtype = torch.bfloat16 if cell.precision == "bf16" else torch.float32
    resolved = resolve(experiment, {}, groups.topology)
    made = batches(
        experiment.model, VOCABULARY, cell.micro_batch, _DIFFERENT, text=cell.text, seed=groups.data_rank
    )  # the same on all ranks of a tensor-parallel group
    ceilings = [matmul_ceiling(device, dtype)]
    built = build(experiment, VOCABULARY, groups, resolved.config)
    forget_peak(device)
    supply = cycle([batch.to(device) for batch in made])
    with PowerReading(device) as power:
        list(steps(experiment, built, groups, supply, cell.warmup))
        windows = [timed(experiment, built, groups, supply, cell.steps) for _ in range(cell.repeats)]
    ceilings.append(matmul_ceiling(device, dtype))
    memory = largest(peak_memory(device), groups)
    padded = built.kernels.attention_name == "padded"
    figures = rates(cell, experiment, windows, groups, padded)
    ceiling, sheet = statistics.mean(ceilings), peak_flops(device, dtype)
    for name, top in (("ceiling", ceiling), ("datasheet", sheet)):
        for kind in ("model", "hardware"):
            share = figures[f"{kind}_flops_per_second"] / groups.topology.world / top if top else None
            figures[f"{'mfu' if kind == 'model' else 'hfu'}_{name}"] = share
    return figures | {
        "matmul_ceiling_flops_per_second": ceiling,
        "datasheet_flops_per_second": sheet,
        "peak_memory_bytes": memory,
        "watts": power.watts,
        "parameters": built.parameters,
        "recomputed_blocks": built.recomputed_blocks,
        "kernels": str(built.kernels),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "loss": windows[-1].loss,
    }


def experiment_of(cell: ThroughputCell) -> Experiment:
    """Write the cell as an experiment, so that the engine is built as in training. Raises InputError."""
    offload = "_offload" if cell.offload else ""
    data = cell.devices // cell.tensor_parallel
    kernels = {name: getattr(cell, name) for name in ("attention", "layer_norm", "linear", "text_loss", "compile")}
    overrides: dict[str, Any] = {"train_micro_batch_size_per_gpu": cell.micro_batch}
    if cell.offload:
        overrides["zero_optimization.offload_optimizer.ratio"] = cell.offload
        # ZeRO-2 keeps its parameters on the device.
        for section in ("offload_optimizer", "offload_param") if cell.zero_stage == 3 else ("offload_optimizer",):
            overrides[f"zero_optimization.{section}.pin_memory"] = cell.pin_memory
    values = {
        "name": "throughput",
        "model": {"size": cell.size},
        "data": {"sources": [{"name": "none", "shards": "none"}], "tokenizer": "none"},
        "batch": {"global": cell.micro_batch * data},
        "train": {"length": "1 steps"},
        "parallel": {"tensor": cell.tensor_parallel, "sequence": cell.sequence_parallel},
        "engine": {
            "deepspeed": f"zero{cell.zero_stage}{offload}_{cell.precision}",
            "overrides": overrides,
            "recompute": cell.recompute,
        },
        "kernels": kernels,
    }
    try:
        return Experiment.model_validate(values)
    except ValueError as error:
        raise InputError(f"cell {cell.name}: {' '.join(str(error).splitlines()[1:3])}") from None


def steps(
    experiment: Experiment, built: Built, groups: Groups, supply: Iterator[Batch], count: int
) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Take `count` optimizer steps; yields the batch of each and its objective, (S,)."""
    scale = groups.topology.data / experiment.batch.global_
    for _ in range(count):
        batch = next(supply)
        set_lr(built, 1e-5)
        each = objective(built.engine(batch), batch, experiment.loss)
        built.engine.backward(each.sum() * scale)
        step(built, groups)
        yield batch, each.detach()


def timed(experiment: Experiment, built: Built, groups: Groups, supply: Iterator[Batch], count: int) -> Timed:
    """Time `count` steps one by one: on a GPU by its own clock, so that the host does not wait between them."""
    seen: list[Batch] = []
    each = torch.zeros(1)
    synchronise(groups.device)
    on_gpu = groups.device.type == "cuda"
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)] if on_gpu else []
    if on_gpu:
        events[0].record()
    clock = [time.perf_counter()]
    for number, (batch, objectives) in enumerate(steps(experiment, built, groups, supply, count), start=1):
        seen.append(batch)
        each = objectives
        if on_gpu:
            events[number].record()
        else:
            clock.append(time.perf_counter())
    synchronise(groups.device)
    if on_gpu:
        seconds = [before.elapsed_time(after) / 1000 for before, after in pairwise(events)]
    else:
        seconds = [after - before for before, after in pairwise(clock)]
    return Timed(seconds, seen, float(each.mean()))


def rates(
    cell: ThroughputCell, experiment: Experiment, windows: list[Timed], groups: Groups, padded: bool
) -> dict[str, Any]:
    """Turn times into rates of all devices; batches of other data ranks are taken to be like this one's."""
    data = groups.topology.data
    seconds = sorted(second for window in windows for second in window.seconds)
    # Per window, since lengths differ from step to step: work done over time taken; the median window counts.
    by_window: dict[str, list[float]] = {}
    for window in windows:
        took = sum(window.seconds)
        useful = [work_of(batch) for batch in window.batches]
        done = [work_of(batch, padded=padded) for batch in window.batches]
        model = experiment.model
        for name, amount in (
            ("samples", sum(batch.samples for batch in window.batches)),
            ("tokens", sum(batch.tokens for batch in window.batches)),
            ("model_flops", sum(step_flops(model, VOCABULARY, work) for work in useful)),
            ("hardware_flops", sum(hardware_flops(model, VOCABULARY, work, cell.recompute) for work in done)),
        ):
            by_window.setdefault(f"{name}_per_second", []).append(data * amount / took)
    spread = by_window["samples_per_second"]
    return {
        **{name: statistics.median(values) for name, values in by_window.items()},
        "samples_per_second_lowest": min(spread),
        "samples_per_second_highest": max(spread),
        "step_seconds": statistics.median(seconds),
        "step_seconds_p10": seconds[len(seconds) // 10],
        "step_seconds_p90": seconds[len(seconds) * 9 // 10],
    }


def forget_peak(device: torch.device) -> None:
    """Begin the peak memory anew, where that can be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU what tensors took at most; on a CPU the whole process, torch included."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def largest(value: float, groups: Groups) -> float:
    """Return the largest `value` of any rank."""
    tensor = torch.tensor([float(value)], dtype=torch.float64, device=groups.device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return float(tensor)


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a failed process group must not hold the others up
