"""What this rank's engine holds of each parameter: one flat fragment of the fp32 master and of Adam's moments.

Every ZeRO stage keeps its optimizer's state in other tensors; here, and nowhere else, it is known which.

    stage 0, fp32   the parameter itself                                   all of it, on every rank
    stage 0, bf16   a master copy per parameter, or flat (apex's Adam)     all of it, on every rank
    stage 1, 2      one flat master per parameter group and rank           what of it falls into the rank's share
    stage 3         one flat master per sub-group, each parameter split    a share of every parameter
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m3ae_scale.engine.build import Built
from m3ae_scale.parallel.shard import Shard, shard_of, whole_shape

Masters = dict[int, tuple[Tensor, int]]  # id(parameter) -> master, offset
Place = tuple[int, int, Tensor | None, int]  # start, count, master, offset: see Held


@dataclass(frozen=True)
class Held:
    """The fragment that this rank holds of one parameter, or rather of its tensor-parallel part."""

    name: str
    part_shape: tuple[int, ...]  # of the part on this tensor-parallel rank
    shape: tuple[int, ...]  # of the whole parameter
    shard: Shard | None  # how the part is cut out of the whole; None: every tensor-parallel rank has all of it
    start: int  # of the fragment in the flattened part
    count: int  # elements in the fragment; 0: other ranks have it all
    master: Tensor | None  # the tensor that the optimizer steps: the fragment lies in it ...
    offset: int  # ... from here

    def view(self, values: Tensor) -> Tensor:
        """Return the fragment in `values`: the master, or a moment of the master's shape."""
        return values.detach().view(-1).narrow(0, self.offset, self.count)


def held_parameters(built: Built) -> list[Held]:
    """List what this rank holds of every parameter, in the model's order: the same list, fragments apart, on all."""
    engine = built.engine
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    find = {0: _find_whole, 1: _find_flat, 2: _find_flat, 3: _find_partitioned}[stage]
    copies = _masters_of_stage_0(optimizer) if stage == 0 else {}
    held = []
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            raise NotImplementedError(f"{name} is frozen: a checkpoint of training holds trained parameters only")
        part = torch.Size(getattr(parameter, "ds_shape", parameter.shape))
        start, count, master, offset = find(optimizer, parameter, copies)
        whole = whole_shape(parameter, part)
        held.append(Held(name, tuple(part), whole, shard_of(parameter), start, count, master, offset))
    return held


def _masters_of_stage_0(optimizer: Any) -> Masters:
    """Map id(parameter) to its fp32 master and where it begins there, if DeepSpeed's bf16 optimizers keep one."""
    found: Masters = {}
    for number, group in enumerate(getattr(optimizer, "fp16_groups", [])):
        offset = 0
        for index, parameter in enumerate(group):
            if hasattr(optimizer, "fp32_groups_flat"):
                found[id(parameter)] = optimizer.fp32_groups_flat[number], offset
                offset += parameter.numel()
            else:
                found[id(parameter)] = optimizer.fp32_groups[number][index], 0
    return found


def _find_whole(optimizer: Any, parameter: nn.Parameter, masters: Masters) -> Place:
    master, offset = masters.get(id(parameter), (parameter, 0))
    return 0, parameter.numel(), master, offset


def _find_flat(optimizer: Any, parameter: nn.Parameter, masters: Masters) -> Place:
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return 0, 0, None, 0
    master = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    return (
        mapping.lp_fragment_address.start,
        mapping.lp_fragment_address.numel,
        master,
        mapping.hp_fragment_address.start,
    )


def _find_partitioned(optimizer: Any, parameter: nn.Parameter, masters: Masters) -> Place:
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = optimizer._get_param_partition_rank(parameter) * size
    count = min(size, parameter.ds_numel - start)  # type: ignore[attr-defined]
    if count <= 0:  # the last ranks may have nothing but padding
        return 0, 0, None, 0
    return start, count, optimizer.fp32_partitioned_groups_flat[group], offset


def stepped_tensors(built: Built) -> Iterator[tuple[Any, dict[str, Any], Tensor]]:
    """Yield every tensor that an optimizer of this rank steps: the optimizer, its parameter group, the tensor."""
    outer, optimizers = built.engine.optimizer, built.optimizers
    if hasattr(outer, "fp32_partitioned_groups_flat"):  # stage 3 empties the groups between steps
        for index, master in enumerate(outer.fp32_partitioned_groups_flat):
            on_device = len(optimizers) > 1 and outer.subgroup_to_device[index] != "cpu"
            inner = optimizers[1 if on_device else 0]
            yield inner, inner.param_groups[outer.sub_group_to_group_id[index]], master
        return
    for group in optimizers[0].param_groups:
        for master in group["params"]:
            yield optimizers[0], group, master


def adam_steps(built: Built) -> int:
    """Return how many steps Adam has counted; 0 before its first."""
    for inner, group, master in stepped_tensors(built):
        state = inner.state.get(master, {})
        if "exp_avg" in state:
            return int(state.get("step", group.get("step", 0)))  # apex counts in the group
    return 0


def fragment(built: Built, held: Held, kind: str) -> Tensor:
    """Return this rank's fragment of the master ("weights") or of a moment ("exp_avg", "exp_avg_sq"): a view of it."""
    if held.master is None:
        return torch.empty(0)
    if kind == "weights":
        return held.view(held.master)
    for inner in built.optimizers:
        if kind in inner.state.get(held.master, {}):
            return held.view(inner.state[held.master][kind])
    if adam_steps(built):
        raise RuntimeError(f"{held.name}: the optimizer has stepped, but its {kind} is not where it was expected")
    return torch.zeros(held.count)  # before the first step


def open_moments(built: Built, steps: int) -> None:
    """Make Adam's moments where this optimizer has not stepped yet, and set its step counts, as if it had."""
    for inner, group, master in stepped_tensors(built):
        state = inner.state[master]
        for kind in ("exp_avg", "exp_avg_sq"):
            if kind not in state:
                state[kind] = torch.zeros_like(master, requires_grad=False)
        if type(inner).__module__.startswith("apex."):
            group["step"] = steps
        elif isinstance(inner, torch.optim.AdamW):
            on_device = inner.defaults.get("fused") or inner.defaults.get("capturable")
            state["step"] = torch.tensor(float(steps), device=master.device if on_device else "cpu")
        else:
            state["step"] = steps


@torch.no_grad()
def refresh_weights(built: Built) -> None:
    """Copy the fp32 masters into the weights that the model computes with. Collective at stages 1 to 3."""
    engine = built.engine
    optimizer, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage == 0:
        copies = _masters_of_stage_0(optimizer)
        for parameter in engine.module.parameters():
            if id(parameter) in copies:
                master, offset = copies[id(parameter)]
                parameter.copy_(master.view(-1)[offset : offset + parameter.numel()].view_as(parameter))
    elif stage < 3:
        optimizer.update_lp_params()
    else:
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
