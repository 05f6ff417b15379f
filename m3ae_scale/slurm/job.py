"""What a job of N nodes amounts to: ranks, batch arithmetic and memory for each number of nodes it may get."""

import re
from dataclasses import dataclass
from pathlib import Path

from m3ae_scale.config import Experiment, Origins
from m3ae_scale.engine.deepspeed_config import Resolved, resolve
from m3ae_scale.engine.deepspeed_json import offloads
from m3ae_scale.errors import InputError
from m3ae_scale.parallel.topology import Topology
from m3ae_scale.planning.states import States, parameters_per_rank, states_per_rank


@dataclass(frozen=True)
class Request:
    """What is asked of SLURM."""

    least: int  # nodes
    most: int
    tasks_per_node: int  # one rank each
    gpus_per_node: int


@dataclass(frozen=True)
class Shape:
    """The run on a given number of nodes."""

    nodes: int
    topology: Topology
    resolved: Resolved
    states: States  # per rank, projected


def parse_nodes(text: str) -> tuple[int, int]:
    """Read "4" or "2-4" as the least and the most nodes. Raises InputError for anything else."""
    match = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", text)
    if match is None:
        raise InputError(f"--nodes: found {text!r}, expected a number as in 4, or the least and the most as in 2-4")
    least, most = int(match[1]), int(match[2] or match[1])
    if most < least:
        raise InputError(f"--nodes: found {text!r}, expected the smaller number first, as in {most}-{least}")
    return least, most


def shape_of(
    experiment: Experiment, origins: Origins, folder: Path, nodes: int, tasks_per_node: int, vocabulary: int
) -> Shape:
    """Work out the run on `nodes` nodes; `folder` is the experiment's, `vocabulary` counts word pieces.

    Raises InputError where ranks, tensor parallelism and the global batch do not divide.
    """
    topology = Topology(nodes * tasks_per_node, experiment.parallel.tensor)
    resolved = resolve(experiment, origins, topology, folder, _tokens_per_sample(experiment))
    config, zero = resolved.config, resolved.config["zero_optimization"]
    on_host = zero["offload_optimizer"].get("ratio", 1.0) if offloads(config, "offload_optimizer") else None
    states = states_per_rank(
        parameters_per_rank(experiment.model, vocabulary, topology.tensor),
        stage=zero["stage"],
        data=topology.data,
        precision=resolved.precision,
        gradients_fp32=config.get("data_types", {}).get("grad_accum_dtype") == "fp32",
        optimizer_on_host=on_host,
        parameters_on_host=offloads(config, "offload_param"),
    )
    return Shape(nodes, topology, resolved, states)


def usable_nodes(experiment: Experiment, origins: Origins, folder: Path, available: int, tasks_per_node: int) -> int:
    """Return the most nodes, up to `available`, on which the global batch divides.

    Raises InputError, that of `available` nodes, when there is none.
    """
    mistake = None
    for nodes in range(available, 0, -1):
        try:
            shape_of(experiment, origins, folder, nodes, tasks_per_node, vocabulary=1)
        except InputError as error:
            mistake = mistake or error
        else:
            return nodes
    raise mistake or InputError(f"--nodes: found {available}, expected at least 1")


def shapes_of(
    experiment: Experiment, origins: Origins, folder: Path, request: Request, vocabulary: int
) -> dict[int, Shape]:
    """Return, for each number of nodes that SLURM may grant, the shape of the nodes that will be used of them.

    Raises InputError when the most or the least nodes do not divide: that is what was asked for.
    """
    for nodes in (request.most, request.least):
        shape_of(experiment, origins, folder, nodes, request.tasks_per_node, vocabulary)
    shapes = {}
    for granted in range(request.least, request.most + 1):
        used = usable_nodes(experiment, origins, folder, granted, request.tasks_per_node)
        shapes[granted] = shape_of(experiment, origins, folder, used, request.tasks_per_node, vocabulary)
    return shapes


def _tokens_per_sample(experiment: Experiment) -> float | None:
    """Guess the average length of a sample, where batch.micro_tokens needs one: that of a full image and caption.

    The data has the true average, which only changes how many passes a step takes.
    """
    if experiment.batch.micro_tokens is None:
        return None
    return float(experiment.model.patches + experiment.model.text_length)
