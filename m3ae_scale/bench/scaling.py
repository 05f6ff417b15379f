"""One cell of a sweep: a real pretraining in a folder of its own, and its row of results.

A cell that has its row is done. One that was interrupted goes on from its last checkpoint.
"""

import itertools
import resource
import sys
from pathlib import Path
from typing import Any

import torch

from m3ae_scale.bench.results import append_row
from m3ae_scale.bench.run import BENCH, done_cells
from m3ae_scale.bench.sweep import Cell, Sweep
from m3ae_scale.config import Experiment, Origins
from m3ae_scale.data import open_training, tokens_per_sample
from m3ae_scale.data.tokenizer import load_tokenizer
from m3ae_scale.engine.deepspeed_config import resolve
from m3ae_scale.model.flops import step_flops, work_of
from m3ae_scale.parallel.topology import Topology
from m3ae_scale.reports.run_figures import model_figures, run_figures
from m3ae_scale.training.metrics_file import read_metrics
from m3ae_scale.training.pretrain import pretrain
from m3ae_scale.training.provenance import provenance

_COUNTED, _COUNTED_BATCH = 4, 256  # batches, and the most samples of each, that the FLOPs of a sample are averaged over


def run_cell(sweep: Sweep, cell: Cell, results: Path) -> None:
    """Train `cell` as the rank that the environment says, and on the first rank write its row to `results`.

    Raises InputError, or SystemExit where the run was asked to stop: see training.pretrain.
    """
    if done_cells(sweep, [cell], results):
        return
    experiment, origins = cell.load()
    folder = pretrain(experiment, origins, cell.experiment, resume=True)
    if folder is not None:
        values = _measure(experiment, origins, cell, folder)
        append_row(results, BENCH, cell.identity(sweep.name), values, source=provenance())


def _measure(experiment: Experiment, origins: Origins, cell: Cell, folder: Path) -> dict[str, Any]:
    """Put together what the row says: settings, figures of the run, and what its compute was."""
    topology = Topology(cell.devices, experiment.parallel.tensor)
    average = tokens_per_sample(experiment) if experiment.batch.micro_tokens else None
    resolved = resolve(experiment, origins, topology, cell.experiment.parent, average)
    figures = run_figures(experiment.batch.global_, read_metrics(folder / "metrics.jsonl"))
    vocabulary = load_tokenizer(experiment.data.tokenizer).size
    flops, epoch = count_flops(experiment, vocabulary)
    values: dict[str, Any] = {
        "run": str(folder),
        "devices": cell.devices,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "tensor": topology.tensor,
        "zero_stage": resolved.config["zero_optimization"]["stage"],
        "precision": resolved.precision,
        "recompute": experiment.engine.recompute,
        "micro_batch": resolved.plan.micro_batch,
        **model_figures(experiment.model, vocabulary),
        **figures,
        "epochs": figures["samples"] / epoch,
        "model_flops_per_sample": flops,
        "model_flops": flops * figures["samples"],
        **_peak_memory(),
    }
    if "samples_per_second" in figures:
        values["model_flops_per_second"] = flops * figures["samples_per_second"]
    return values


def _peak_memory() -> dict[str, Any]:
    """Peak memory of the first rank: what torch held of the GPU, or of this process on a CPU."""
    if torch.cuda.is_available():
        return {"peak_memory_bytes": torch.cuda.max_memory_allocated(), "peak_memory_of": "tensors on the GPU"}
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_memory_bytes": peak, "peak_memory_of": "the process"}


def count_flops(experiment: Experiment, vocabulary: int) -> tuple[float, int]:
    """Count the model FLOPs of training on one sample, over the first batches, and the samples of an epoch."""
    batch = min(experiment.batch.global_, _COUNTED_BATCH)
    alone = experiment.model_copy(
        update={
            "data": experiment.data.model_copy(update={"workers": 0}),
            "batch": experiment.batch.model_copy(update={"global_": batch, "micro": None, "micro_tokens": None}),
        }
    )
    data = open_training(alone, data_rank=0, data_world=1, micro_batch=batch, accumulation=1)
    flops, samples = 0.0, 0
    for packed in itertools.islice(data, _COUNTED):
        flops += step_flops(experiment.model, vocabulary, work_of(packed))
        samples += packed.samples
    return flops / samples, data.samples_per_epoch
