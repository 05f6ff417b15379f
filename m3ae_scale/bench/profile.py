"""Where a step's time goes: a trace for a viewer, and by room of the model; on a GPU also what it waited for.

The experiment's own engine trains on invented batches of its shape: no data is read, no run folder written.
"""

import contextlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from m3ae_scale.bench.synthetic import batches
from m3ae_scale.bench.throughput import VOCABULARY
from m3ae_scale.config import Experiment, Origins
from m3ae_scale.engine.build import build
from m3ae_scale.engine.deepspeed_config import resolve
from m3ae_scale.engine.step import set_lr, step
from m3ae_scale.kernels.peak import synchronise
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import close_groups, open_groups
from m3ae_scale.parallel.launch import find_ranks

_COMMUNICATION = ("nccl", "gloo", "c10d::", "allreduce", "all_reduce", "allgather", "all_gather", "reduce_scatter")
ROOMS = ("encoder.embed", "encoder.transformer", "decoder.embed", "decoder.transformer", "image_head", "text_head")
_PHASES = ("backward pass", "optimizer step")
Interval = tuple[float, float]


def profile_steps(
    experiment: Experiment, origins: Origins, path: Path, output: Path, count: int = 3, warmup: int = 2
) -> Iterator[str]:
    """Profile `count` steps of the experiment read from `path`; yields lines to print, on the first rank only.

    Writes OUTPUT/trace_rankN.json, which chrome://tracing and Perfetto open.
    """
    groups = open_groups(find_ranks(os.environ), experiment.parallel.tensor)
    resolved = resolve(experiment, origins, groups.topology, path.parent, 300.0)
    built = build(experiment, VOCABULARY, groups, resolved.config)
    made = batches(experiment.model, VOCABULARY, resolved.plan.micro_batch, warmup + count, seed=groups.data_rank)
    supply = [batch.to(groups.device) for batch in made]
    on_gpu = groups.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def one(number: int) -> None:
        set_lr(built, 1e-5)
        batch = supply[number]
        each = objective(built.engine(batch), batch, experiment.loss)
        with record_function(_PHASES[0]):
            built.engine.backward(each.mean())
        with record_function(_PHASES[1]):
            step(built, groups)

    with _named_rooms(built.engine.module):
        for number in range(warmup):
            one(number)
        synchronise(groups.device)
        with profile(activities=activities) as seen:
            for number in range(warmup, warmup + count):
                one(number)
            synchronise(groups.device)
    output.mkdir(parents=True, exist_ok=True)
    trace = output / f"trace_rank{groups.rank}.json"
    seen.export_chrome_trace(str(trace))
    if groups.first:
        yield from describe(json.loads(trace.read_text())["traceEvents"], count, on_gpu)
        yield f"trace: {trace}; open it in chrome://tracing or Perfetto"
    close_groups()


def describe(events: list[dict[str, Any]], steps: int, on_gpu: bool) -> Iterator[str]:
    """Say where the time of a trace went, a step's share of it; each part's milliseconds a step."""
    timed = [event for event in events if event.get("ph") == "X" and "dur" in event]
    named: defaultdict[str, float] = defaultdict(float)
    for event in timed:
        # A range stands in the trace once for the host and, on a GPU, once for the device.
        wanted = "gpu_user_annotation" if on_gpu else "user_annotation"
        if event.get("cat") == wanted and event["name"] in (*ROOMS, *_PHASES):
            named[event["name"]] += event["dur"]
    yield "| part | ms a step |"
    yield "|---|---|"
    for name in (*ROOMS, *_PHASES):
        yield f"| {name}{' (forward)' if name in ROOMS else ''} | {named[name] / 1000 / steps:.2f} |"
    if on_gpu:
        kernels = [event for event in timed if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
        talk = merged(_span(e) for e in kernels if _communicates(e))
        work = merged(_span(e) for e in kernels if not _communicates(e))
        busy = merged([*talk, *work])
        whole = busy[-1][1] - busy[0][0] if busy else 0.0
        yield f"| device busy | {length(busy) / 1000 / steps:.2f} |"
        yield f"| device waiting for the host | {(whole - length(busy)) / 1000 / steps:.2f} |"
        yield f"| communication | {length(talk) / 1000 / steps:.2f} |"
        yield f"| communication that nothing hid | {(length(busy) - length(work)) / 1000 / steps:.2f} |"
    else:
        talk = merged(_span(e) for e in timed if e.get("cat") == "cpu_op" and _communicates(e))
        yield f"| communication (on a CPU nothing hides it) | {length(talk) / 1000 / steps:.2f} |"


def merged(spans: Iterable[Interval]) -> list[Interval]:
    """Join intervals (start, end) that overlap."""
    joined: list[Interval] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def length(spans: Iterable[Interval]) -> float:
    """Add up intervals that do not overlap."""
    return sum(end - start for start, end in spans)


def _span(event: dict[str, Any]) -> Interval:
    return event["ts"], event["ts"] + event["dur"]


def _communicates(event: dict[str, Any]) -> bool:
    name = event["name"].lower()
    return any(word in name for word in _COMMUNICATION)


@contextlib.contextmanager
def _named_rooms(model: nn.Module) -> Iterator[None]:
    """Make the forward pass of each room a named range of the profile."""
    handles, ranges = [], {}

    def begin(module: nn.Module, inputs: Any, name: str) -> None:
        ranges[name] = record_function(name)
        ranges[name].__enter__()

    def end(module: nn.Module, inputs: Any, outputs: Any, name: str) -> None:
        ranges.pop(name).__exit__(None, None, None)

    for name in ROOMS:
        room = model.get_submodule(name)
        handles.append(room.register_forward_pre_hook(lambda m, i, name=name: begin(m, i, name)))
        handles.append(room.register_forward_hook(lambda m, i, o, name=name: end(m, i, o, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
