"""Builds the training engine: the transformations of the model as one ordered list.

1. choose kernels      by device and precision; explicit choices are checked
2. construct           under zero.Init at ZeRO-3, so that no rank ever holds the whole model
3. draw values         by parameter name, before anything copies them into fp32 masters
4. compile             the blocks, if wanted
5. recompute           around what was compiled; both before the engine hooks modules, so that its hooks stay outside
6. group parameters    decayed or not
7. deepspeed.initialize
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn

from m3ae_scale.config import Experiment, ModelConfig
from m3ae_scale.engine.checkpoint.weights import as_tensor
from m3ae_scale.engine.compile import apply_compile, without_patched_linear
from m3ae_scale.engine.deepspeed_json import offloads
from m3ae_scale.engine.operations import clear_stale_locks
from m3ae_scale.engine.quick_deepspeed import deepspeed
from m3ae_scale.engine.quick_deepspeed import logger as deepspeed_logger
from m3ae_scale.engine.recompute import apply_recompute
from m3ae_scale.errors import InputError
from m3ae_scale.kernels import linear
from m3ae_scale.kernels.adam import build_adam
from m3ae_scale.kernels.choose import Kernels, choose
from m3ae_scale.model import M3AE, Layers, PlainLayers
from m3ae_scale.model.init import decays, draw
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.parallel.sequence import sum_gradients
from m3ae_scale.parallel.shard import shard_of, whole_shape


@dataclass(frozen=True)
class Built:
    """The engine with what the run reports about it."""

    engine: Any  # deepspeed.DeepSpeedEngine
    kernels: Kernels
    parameters: int  # of the whole model
    recomputed_blocks: int
    clipping: float  # largest global gradient norm; 0: no limit

    @property
    def optimizers(self) -> list[Any]:
        """The optimizers inside DeepSpeed's; the second one steps what ZeRO-3 leaves of an offload on the device.

        DeepSpeed makes that one itself (offload_optimizer.ratio below 1), and passes no learning rate on to it.
        """
        outer = self.engine.optimizer
        second = getattr(outer, "backup_optimizer", None)
        return [getattr(outer, "optimizer", outer), *([second] if second is not None else [])]


def build(
    experiment: Experiment,
    vocabulary: int,
    groups: Groups,
    deepspeed_config: dict[str, Any],
    given: Mapping[str, np.ndarray] | None = None,
) -> Built:
    """Build model and engine for this rank. `deepspeed_config` is final: see engine/deepspeed_config.py.

    given: whole initial values of some parameters, by name; the others are drawn.
    """
    deepspeed_logger.setLevel("WARNING")
    # DeepSpeed's own calls to torch, deprecated there since 2.13: nothing a user can do about it.
    warnings.filterwarnings("ignore", message=r".*torch\.distributed\..* is deprecated", category=FutureWarning)
    stage = deepspeed_config.get("zero_optimization", {}).get("stage", 0)
    dtype = torch.bfloat16 if deepspeed_config.get("bf16", {}).get("enabled") else torch.float32
    offloaded = offloads(deepspeed_config, "offload_optimizer")
    kernels = choose(experiment.kernels, groups.device.type, dtype, offloaded, groups.tensor is not None)
    if kernels.linear_name == "fp8":
        check_widths(experiment.model, groups.topology.tensor)
    mpu = _mpu(groups)
    if experiment.kernels.compile != "none" and stage == 3:
        deepspeed_config = without_patched_linear(deepspeed_config)
    clear_stale_locks()
    deepspeed.init_distributed(dist_init_required=False)  # adopts the groups that torch already has

    with told_plainly(), _construction(stage, deepspeed_config, mpu):
        model = build_model(experiment, vocabulary, layers_of(groups, experiment.parallel.sequence, kernels), kernels)
    draw_values(model, experiment.seed, groups, given or {})
    if experiment.parallel.sequence and groups.tensor is not None:
        sum_gradients((model.encoder.transformer, model.decoder.transformer), groups.tensor)
    apply_compile(model, experiment.kernels.compile, stage)
    recomputed = apply_recompute(model, experiment.engine.recompute)
    parameters = count_parameters(model)
    decayed = parameter_groups(model, experiment.optimizer.weight_decay)
    # Rate 0 until the first step: DeepSpeed's stage-0 bf16 path steps once on zeros to allocate Adam's moments.
    optimizer = build_adam(kernels.adam_name, decayed, experiment.optimizer, lr=0.0)
    clipping = float(deepspeed_config.get("gradient_clipping", 0.0))
    if stage == 0:
        deepspeed_config = {**deepspeed_config, "gradient_clipping": 0.0}  # engine/step.py clips there
    with told_plainly():
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config, mpu=mpu, dist_init_required=False
        )
    forget_phantom_steps(optimizer)
    return Built(engine, kernels, parameters, recomputed, clipping)


def build_model(experiment: Experiment, vocabulary: int, layers: Layers, kernels: Kernels) -> M3AE:
    """Construct the model, its values not yet drawn."""
    augment = experiment.data.augment
    return M3AE(experiment.model, vocabulary, augment.mean, augment.std, layers, kernels)


def layers_of(groups: Groups, sequence: bool, kernels: Kernels) -> Layers:
    """Return the factory of linear layers for this topology, with sequence parallelism if wanted."""
    if groups.tensor is None:
        return PlainLayers(kernels.linear)
    from m3ae_scale.parallel.linear import TensorParallelLayers

    return TensorParallelLayers(groups.tensor, sequence, kernels.linear)


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what DeepSpeed's own check of its config says into an InputError of one line."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"DeepSpeed refuses its config (m3ae-scale config explain shows it): {error.title}: "
            f"{where + ': ' if where else ''}{first['msg']}, found {first['input']!r}"
        ) from None


def check_widths(model: ModelConfig, tensor: int) -> None:
    """Check that every linear layer of the blocks fits the 8-bit products. Raises InputError with the width."""
    unit = linear.MULTIPLE * tensor
    for tower in ("encoder", "decoder"):
        shape = getattr(model, tower).shape
        for key in ("dim", "mlp_dim"):
            width = getattr(shape, key)
            if width % unit:
                among = f" over {tensor} tensor-parallel ranks" if tensor > 1 else ""
                raise InputError(
                    f"kernels.linear: fp8 needs widths that are multiples of {unit}{among}, but model.{tower}.{key} is "
                    f"{width}; choose another width, or kernels.linear torch"
                )


def peak_lr(experiment: Experiment) -> float:
    """Return the peak learning rate: the rate per 256 samples, scaled by the global batch."""
    return experiment.optimizer.lr * experiment.batch.global_ / 256


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split parameters into those that decay and those that do not."""
    named = list(model.named_parameters())
    return [
        {"params": [p for n, p in named if decays(n)], "weight_decay": weight_decay},
        {"params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
    ]


def forget_phantom_steps(optimizer: torch.optim.Optimizer) -> None:
    """Set Adam's step counts back to 0, whatever DeepSpeed did while it allocated the moments."""
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"].zero_()


def draw_values(model: nn.Module, seed: int, groups: Groups, given: Mapping[str, np.ndarray]) -> None:
    """Give every parameter its initial value, `given` or drawn, or this rank's part of it."""
    tensor_rank, tensor_size = groups.tensor_rank, groups.topology.tensor
    for name, parameter in model.named_parameters():
        with whole_parameter(parameter, write=True), torch.no_grad():
            if name in given:
                value = as_tensor(given[name])
            else:
                value = draw(name, whole_shape(parameter, parameter.shape), seed)
            shard = shard_of(parameter)
            if shard is not None:
                value = shard.part(value, tensor_rank, tensor_size)
            parameter.copy_(value)


@contextlib.contextmanager
def whole_parameter(parameter: nn.Parameter, write: bool = False) -> Iterator[None]:
    """Hold `parameter` unpartitioned over data-parallel ranks inside the context (a no-op outside ZeRO-3).

    With `write`, every rank has written the same values, and each keeps its own slice of them.
    """
    if not hasattr(parameter, "ds_id"):
        yield
        return
    parameter.all_gather([parameter])  # type: ignore[attr-defined]
    try:
        yield
    finally:
        parameter.partition([parameter], has_been_updated=write)  # type: ignore[attr-defined]


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of the whole model, whatever part of it this rank holds."""
    total = 0
    for parameter in model.parameters():
        local = getattr(parameter, "ds_shape", parameter.shape)
        total += torch.Size(whole_shape(parameter, torch.Size(local))).numel()
    return total


def _construction(stage: int, config: dict[str, Any], mpu: ModuleType | None) -> contextlib.AbstractContextManager[Any]:
    if stage < 3:
        return contextlib.nullcontext()
    group = mpu.get_data_parallel_group() if mpu is not None else None
    return deepspeed.zero.Init(config_dict_or_path=config, mpu=mpu, data_parallel_group=group)


def _mpu(groups: Groups) -> ModuleType | None:
    if groups.tensor is None:
        return None
    from m3ae_scale.parallel import mpu

    return mpu
