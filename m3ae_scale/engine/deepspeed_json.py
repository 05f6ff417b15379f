"""Finds and reads a DeepSpeed JSON, and refuses what DeepSpeed would take without a word. Imports no torch."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m3ae_scale.config.load import nearest
from m3ae_scale.config.shipped import shipped
from m3ae_scale.errors import InputError

# Keys that DeepSpeed 0.19 reads (runtime/config.py). It ignores any other without a word, so we name them.
TOP_LEVEL = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping",
    "bf16", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer",
    "communication_data_type", "data_types", "prescale_gradients", "gradient_predivide_factor",
    "gradient_allreduce_op", "managed_gradient_accumulation", "disable_allgather", "checkpoint", "datastates_ckpt",
    "aio", "compile", "steps_per_print", "wall_clock_breakdown", "memory_breakdown",
    "dump_state", "log_level", "timers", "flops_profiler", "comms_logger", "tensorboard", "wandb", "csv_monitor",
    "comet", "disable_python_gc", "fp16", "torch_autocast",
)  # fmt: skip

# The same of zero_optimization (runtime/zero/config.py).
ZERO = (
    "stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce",
    "allgather_partitions", "allgather_bucket_size", "overlap_comm", "compute_grad_norm", "load_from_fp32_weights",
    "elastic_checkpoint", "offload_param", "offload_optimizer", "zenflow", "sub_group_size", "cpu_offload",
    "cpu_offload_param", "cpu_offload_use_pin_memory", "stage3_prefetch_bucket_size",
    "stage3_param_persistence_threshold", "stage3_model_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_gather_16bit_weights_on_model_save", "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential",
    "stage3_gather_fp16_weights_on_model_save", "ignore_unused_parameters", "legacy_stage1", "round_robin_gradients",
    "parameter_alignment", "zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients", "memory_efficient_linear", "pipeline_loading_checkpoint", "override_module_apply",
    "log_trace_cache_warnings", "enable_sanity_checks", "save_muon_momentum_buffer_in_memory", "leaf_module",
)  # fmt: skip

# The same of its two sections about the host (runtime/zero/offload_config.py).
OFFLOAD = {
    "offload_param": ("device", "nvme_path", "buffer_count", "buffer_size", "max_in_cpu", "pin_memory"),
    "offload_optimizer": (
        "device", "nvme_path", "buffer_count", "pin_memory", "pipeline_read", "pipeline_write", "fast_init", "ratio",
        "super_offload", "cpuadam_cores_perc",
    ),
}  # fmt: skip

# Keys that DeepSpeed knows and that have no place here, each with what to do instead.
NOT_HERE = {
    "optimizer": "the experiment owns it: move its values to optimizer.lr, optimizer.betas, optimizer.weight_decay",
    "scheduler": "the experiment owns it: move its values to train.length, train.warmup and train.final_lr",
    "fp16": "fp16 needs loss scaling and is not supported: use bf16, or engine.precision: fp32",
    "activation_checkpointing": "the experiment owns it: set engine.recompute",
    "amp": "use bf16, or engine.precision: bf16",
    "torch_autocast": "use bf16, or engine.precision: bf16",
    "tensor_parallel": "the experiment owns it: set parallel.tensor",
    "pipeline": "pipeline parallelism is not supported: use ZeRO and parallel.tensor",
    "data_efficiency": "the experiment owns the data: see data.sources and mask",
    "dataloader_drop_last": "the experiment owns the data: every rank takes the same number of steps as it is",
}

_UNKNOWN_PLACE = "checkpoints do not know where it keeps Adam's moments, so a resumed run would have lost them"


def find_deepspeed_json(name: str, folder: Path | None = None) -> Path:
    """Find the JSON called `name`: beside the experiment (`folder`), in the current folder, or among the shipped ones.

    A name without ending, such as "zero3_bf16", means the ".json" of that name.
    Raises InputError that lists the shipped ones.
    """
    ours = shipped_folder()
    for base in (folder or Path(), Path(), *([ours] if ours else [])):
        for candidate in (base / name, base / f"{name}.json"):
            if candidate.is_file():
                return candidate
    names = sorted(path.stem for path in ours.glob("*.json")) if ours else []
    raise InputError(
        f"engine.deepspeed: found no {name!r} beside the experiment, in {Path.cwd()}"
        f"{f', or in {ours}' if ours else ''}{nearest(Path(name).stem, names) if names else ''}"
    )


def shipped_folder() -> Path | None:
    """Return configs/ds/ of the clone this package was imported from, or of the environment it was installed into."""
    return shipped("ds")


def load_deepspeed_json(path: str | Path) -> dict[str, Any]:
    """Read the DeepSpeed JSON at `path` and check it.

    Raises InputError for a missing or broken file, a key given twice, and whatever `check_deepspeed_config` refuses.
    """
    path = Path(path)
    try:
        values = json.loads(path.read_text(), object_pairs_hook=lambda pairs: _without_repeats(path, pairs))
    except OSError as error:
        raise InputError(f"{path}: cannot read the DeepSpeed config ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: found a {type(values).__name__}, expected an object with DeepSpeed's keys")
    check_deepspeed_config(values, str(path))
    return values


def check_deepspeed_config(config: dict[str, Any], where: str) -> None:
    """Refuse unknown keys, "auto", an unknown ZeRO stage, and blocks that the experiment owns.

    `where` opens the message of the InputError.
    """
    for key, value in config.items():
        if key in NOT_HERE:
            if key in TOP_LEVEL and isinstance(value, dict) and value.get("enabled") is False:
                continue  # switched off: no offence
            raise InputError(f"{where}: {key}: has no place here; {NOT_HERE[key]}")
        if key not in TOP_LEVEL:
            raise InputError(f'{where}: unknown key "{key}"{_nearest_or_any(key, TOP_LEVEL)}')
    for key, value in leaves(config):
        if value == "auto" or (isinstance(value, list) and "auto" in value):
            raise InputError(f'{where}: {key}: found "auto", which DeepSpeed drops; write the value')
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{where}: {key}: found {value}, expected a finite number: JSON has no other")
    for section in ("bf16", "zero_optimization", "data_types"):
        if not isinstance(config.get(section, {}), dict):
            raise InputError(f"{where}: {section}: found {config[section]!r}, expected an object")
    for key in config.get("data_types", {}):
        if key != "grad_accum_dtype":
            raise InputError(f'{where}: unknown key "data_types.{key}"; expected grad_accum_dtype')
    zero = config.get("zero_optimization", {})
    for key in zero:
        if key not in ZERO:
            raise InputError(f'{where}: unknown key "zero_optimization.{key}"{_nearest_or_any(key, ZERO)}')
    if zero.get("zenflow"):
        raise InputError(f"{where}: zero_optimization.zenflow: {_UNKNOWN_PLACE}; leave it out")
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise InputError(f"{where}: zero_optimization.stage: found {stage!r}, expected 0, 1, 2 or 3")
    for section, known in OFFLOAD.items():
        _check_offload(zero.get(section) or {}, f"{where}: zero_optimization.{section}", known)
    optimizer = zero.get("offload_optimizer") or {}
    if optimizer.get("super_offload"):
        raise InputError(f"{where}: zero_optimization.offload_optimizer.super_offload: {_UNKNOWN_PLACE}; leave it out")
    if optimizer.get("device") == "nvme":
        raise InputError(f"{where}: zero_optimization.offload_optimizer.device nvme: {_UNKNOWN_PLACE}; use cpu")
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        value = config.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{where}: {key}: found {value!r}, expected a whole number from 1 on")
    clipping = config.get("gradient_clipping", 0)
    if not isinstance(clipping, int | float) or isinstance(clipping, bool) or clipping < 0:
        raise InputError(f"{where}: gradient_clipping: found {clipping!r}, expected a norm, or 0 for off")
    enabled = config.get("bf16", {}).get("enabled", False)
    if not isinstance(enabled, bool):
        raise InputError(f"{where}: bf16.enabled: found {enabled!r}, expected true or false")


def _check_offload(values: Any, place: str, known: tuple[str, ...]) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{place}: found {values!r}, expected an object")
    for key in values:
        if key not in known:
            raise InputError(f'{place}: unknown key "{key}"{nearest(key, list(known))}')
    device = values.get("device", "none")
    if device not in ("none", "cpu", "nvme"):
        raise InputError(f"{place}.device: found {device!r}, expected none, cpu or nvme")
    ratio = values.get("ratio", 1.0)
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 <= ratio <= 1:
        raise InputError(f"{place}.ratio: found {ratio!r}, expected the share of the optimizer on the host, 0 to 1")


def offloads(config: dict[str, Any], section: str) -> bool:
    """Return whether `section` of zero_optimization, offload_optimizer or offload_param, names a device."""
    return (config.get("zero_optimization", {}).get(section) or {}).get("device", "none") != "none"


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is not an object with its dotted key."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nearest_or_any(key: str, known: tuple[str, ...]) -> str:
    hint = nearest(key, list(known))
    return hint if hint.startswith("; did you mean") else "; DeepSpeed would ignore it: see its config documentation"


def _without_repeats(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise InputError(f"{path}: {key}: stands twice; keep one")
        values[key] = value
    return values
