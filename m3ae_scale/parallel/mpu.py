"""What DeepSpeed asks of a model-parallel unit, answered from megatron-core's state under DeepSpeed's names."""

import torch.distributed as dist
from megatron.core import parallel_state


def get_model_parallel_group() -> dist.ProcessGroup:
    """Return the tensor-parallel group of this process."""
    return parallel_state.get_tensor_model_parallel_group()


def get_model_parallel_rank() -> int:
    """Return this process's place in its tensor-parallel group."""
    return int(parallel_state.get_tensor_model_parallel_rank())


def get_model_parallel_world_size() -> int:
    """Return the size of the tensor-parallel group."""
    return int(parallel_state.get_tensor_model_parallel_world_size())


def get_data_parallel_group() -> dist.ProcessGroup:
    """Return the data-parallel group of this process."""
    return parallel_state.get_data_parallel_group()


def get_data_parallel_rank() -> int:
    """Return this process's place in its data-parallel group."""
    return int(parallel_state.get_data_parallel_rank())


def get_data_parallel_world_size() -> int:
    """Return the size of the data-parallel group."""
    return int(parallel_state.get_data_parallel_world_size())
