"""The process groups of a run, made once: the world, and tensor and data parallelism inside it."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from m3ae_scale.parallel.host_memory import keep_freed_memory
from m3ae_scale.parallel.launch import Ranks
from m3ae_scale.parallel.topology import Topology

# A rank may wait this long for another that fetches its first shard or compiles a kernel.
_PATIENCE = timedelta(minutes=30)
_before: dict[str, str | None] = {}  # variables as they were before the groups were opened


@dataclass(frozen=True)
class Groups:
    """Where this process stands, and with whom it talks."""

    topology: Topology
    rank: int
    device: torch.device
    tensor: dist.ProcessGroup | None  # None: the model is not split

    @property
    def tensor_rank(self) -> int:
        """This process's place among those that share one replica of the model."""
        return self.topology.tensor_rank(self.rank)

    @property
    def data_rank(self) -> int:
        """This process's place among the replicas."""
        return self.topology.data_rank(self.rank)

    @property
    def first(self) -> bool:
        """True on the one process that writes for all."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Add `values` up over the data-parallel replicas, in place; each replica counts once."""
        if self.tensor_rank != 0:
            values.zero_()
        dist.all_reduce(values)
        return values


def open_groups(ranks: Ranks, tensor_parallel: int) -> Groups:
    """Start torch.distributed for this process and, where the model is split, megatron's groups."""
    topology = Topology(world=ranks.world, tensor=tensor_parallel)
    device = torch.device("cuda", ranks.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    # DeepSpeed reads its place from these, whatever launcher was used.
    place = ranks.environment()
    if not _before:
        _before.update({name: os.environ.get(name) for name in place})
    os.environ.update(place)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=ranks.rank, world_size=ranks.world, timeout=_PATIENCE)
    if tensor_parallel == 1:
        return Groups(topology, ranks.rank, device, None)
    from megatron.core import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel)
    return Groups(topology, ranks.rank, device, parallel_state.get_tensor_model_parallel_group())


def close_groups() -> None:
    """Leave all process groups, so that this process is no rank any more."""
    if dist.is_initialized():
        dist.destroy_process_group()
    for name, value in _before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _before.clear()
