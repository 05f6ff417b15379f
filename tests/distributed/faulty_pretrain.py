"""One rank of `m3ae-scale pretrain` to which the given faults happen.

    python faulty_pretrain.py '[{"fault": "nan_data", "rank": 1, "step": 5}]' pretrain EXPERIMENT ...

A fault happens once, at the first micro-batch of its step (counted from 1), on its rank; "always" ones from there on.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from m3ae_scale.batch import Batch
from m3ae_scale.cli.main import program
from m3ae_scale.training import loop, saver

faults = [fault for fault in json.loads(sys.argv[1]) if fault.get("rank", 0) == int(os.environ["RANK"])]
runs: list[loop.Run] = []


def due(*names: str) -> list[dict[str, Any]]:
    """Take the faults of these names whose step has come."""
    step = runs[0].done + 1
    found = [fault for fault in faults if fault["fault"] in names and step >= fault["step"]]
    for fault in found:
        if not fault.get("always"):
            faults.remove(fault)
    return found


def next_batch(run: loop.Run) -> Batch:
    """Fetch the next micro-batch, and let happen what is due before a step."""
    runs[:] = [run]
    if due("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if due("kill_worker"):
        (worker,) = multiprocessing.active_children()
        worker.kill()
    if due("crash"):
        raise RuntimeError("a fault of the hardware")
    for fault in due("clock"):
        time.time = partial(lambda wall, jump: wall() + jump, time.time, fault["seconds"])
    for _ in due("nan_weights"):
        optimizer = run.built.engine.optimizer
        optimizer.single_partition_of_fp32_groups[0].data.fill_(torch.nan)
        for parameter in run.built.engine.module.parameters():
            parameter.data.fill_(torch.nan)
    run.feed, feed = Slow(run.feed), run.feed
    batch = plain_next(run)
    run.feed = feed
    if due("nan_data"):
        return replace(batch, patches=torch.full_like(batch.patches, torch.nan, dtype=torch.float32))
    return batch


class Slow:
    """A feed that keeps its rank waiting, for a while or for ever, when that is due."""

    def __init__(self, feed: Any):
        self.feed = feed

    def __next__(self) -> Batch:
        for _ in due("hang"):
            time.sleep(3600)
        for fault in due("slow"):
            time.sleep(fault["seconds"])
        return next(self.feed)


def objective(*arguments: Any) -> torch.Tensor:
    """Score the samples, spoiled when that is due."""
    each = plain_objective(*arguments)
    for fault in due("spike"):
        each = each * fault["factor"]
    if due("nan_gradient"):
        each.register_hook(lambda gradient: gradient * torch.nan)
    return each


def signalled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, the rank's SIGUSR1 coming while it runs when that is due."""

    def inner(*arguments: Any, **keywords: Any) -> Any:
        if runs and due(name):
            os.kill(os.getpid(), signal.SIGUSR1)
        return function(*arguments, **keywords)

    return inner


plain_next, loop._next_batch = loop._next_batch, next_batch
plain_objective, loop.objective = loop.objective, objective
loop.validate = signalled("signal_in_validation", loop.validate)
saver.save_checkpoint = signalled("signal_in_save", saver.save_checkpoint)
program(sys.argv[2:])
