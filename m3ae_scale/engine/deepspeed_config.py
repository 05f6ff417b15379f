"""The final DeepSpeed config: the JSON and the experiment, reconciled once, each value with where it came from.

1. JSON                the file that engine.deepspeed names
2. engine.overrides    replace its keys
3. batch triple        batch.global, batch.micro and the topology against DeepSpeed's three keys
4. gradient clipping   optimizer.gradient_clipping against gradient_clipping
5. precision           engine.precision against bf16.enabled
6. partial offload     zero_optimization.offload_optimizer.ratio against zero_optimization.stage

A value given on one side fills the other; given on both sides and different, it is an error that names both places.
Imports no torch.
"""

from pathlib import Path
from typing import Any, NamedTuple

from m3ae_scale.config import Experiment, Origins
from m3ae_scale.engine.deepspeed_json import (
    TOP_LEVEL,
    check_deepspeed_config,
    find_deepspeed_json,
    leaves,
    load_deepspeed_json,
)
from m3ae_scale.errors import InputError
from m3ae_scale.parallel.topology import BatchPlan, Topology, plan_batch

__all__ = ["Resolved", "load_deepspeed_json", "resolve"]

Provenance = dict[str, str]  # "zero_optimization.stage" -> "zero3_bf16.json"


class Resolved(NamedTuple):
    """What DeepSpeed is told, and what was worked out on the way."""

    config: dict[str, Any]  # for deepspeed.initialize, complete: nothing in it is left to a default that matters
    provenance: Provenance  # of every value in it, by dotted key
    plan: BatchPlan
    precision: str  # "fp32" or "bf16"


def resolve(
    experiment: Experiment,
    origins: Origins,
    topology: Topology,
    folder: Path | None = None,
    tokens_per_sample: float | None = None,
) -> Resolved:
    """Reconcile `experiment` with the JSON that it names.

    `folder` is the experiment's own: a relative JSON path starts there. `tokens_per_sample` is the average length of
    a sample in tokens, needed where batch.micro_tokens is set. Raises InputError for every contradiction.
    """
    path = find_deepspeed_json(experiment.engine.deepspeed, folder)
    path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    config = load_deepspeed_json(path)
    places = {key: str(path) for key, _ in leaves(config)}
    _override(config, places, experiment.engine.overrides, origins)
    plan = _batch(config, places, experiment, origins, topology, tokens_per_sample)
    _gradient_clipping(config, places, experiment, origins)
    precision = _precision(config, places, experiment, origins)
    config.setdefault("zero_optimization", {}).setdefault("stage", 0)
    places.setdefault("zero_optimization.stage", "neither side: ZeRO off")
    _partial_offload(config, places)
    config = {key: config[key] for key in sorted(config, key=TOP_LEVEL.index)}
    return Resolved(config, {key: places[key] for key, _ in leaves(config)}, plan, precision)


def _override(config: dict[str, Any], places: Provenance, overrides: dict[str, Any], origins: Origins) -> None:
    """Put each override in its place; null takes the JSON's key away."""
    for key, value in _flat(overrides):
        place = f"{_place(f'engine.overrides.{key}', origins)}: engine.overrides"
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise InputError(f"{place}: {key}: {parent!r} is not a section of the DeepSpeed config")
        for stale in [k for k in places if k == key or k.startswith(f"{key}.")]:
            del places[stale]
        node.pop(last, None)
        if value is not None:
            node[last] = value
            places[key] = place
        check_deepspeed_config(config, place)


def _partial_offload(config: dict[str, Any], places: Provenance) -> None:
    """Refuse to divide the optimizer between host and device where only ZeRO 3 can."""
    zero = config["zero_optimization"]
    ratio = (zero.get("offload_optimizer") or {}).get("ratio", 1.0)
    if ratio < 1 and zero["stage"] != 3:
        key = "zero_optimization.offload_optimizer.ratio"
        raise InputError(
            f"{places[key]}: {key} {ratio} keeps part of the optimizer on the device, which ZeRO 3 alone can, but "
            f"{places['zero_optimization.stage']}: zero_optimization.stage is {zero['stage']}; use stage 3, or ratio 1"
        )


def _flat(overrides: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Write nested overrides, as --set makes them, with dotted keys."""
    pairs: list[tuple[str, Any]] = []
    for key, value in overrides.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _batch(
    config: dict[str, Any],
    places: Provenance,
    experiment: Experiment,
    origins: Origins,
    topology: Topology,
    tokens_per_sample: float | None,
) -> BatchPlan:
    batch = experiment.batch
    whole = _agree(config, places, "train_batch_size", "batch.global", batch.global_, origins)
    if batch.micro_tokens is not None and "train_micro_batch_size_per_gpu" in config:
        raise InputError(
            f"{places['train_micro_batch_size_per_gpu']}: train_micro_batch_size_per_gpu counts samples, but "
            f"{_place('batch.micro_tokens', origins)}: batch.micro_tokens counts tokens; keep one, as with "
            f"--set engine.overrides.train_micro_batch_size_per_gpu=null"
        )
    micro = _agree(config, places, "train_micro_batch_size_per_gpu", "batch.micro", batch.micro, origins)
    accumulation = config.get("gradient_accumulation_steps")
    try:
        plan = plan_batch(whole, topology.data, micro, accumulation, batch.micro_tokens, tokens_per_sample)
    except InputError as error:
        keys = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        given = "".join(f" ({key} is from {places[key]})" for key in keys if key in places)
        raise InputError(f"{_place('batch.global', origins)}: {error}{given}") from None
    for key, value in (
        ("train_micro_batch_size_per_gpu", plan.micro_batch),
        ("gradient_accumulation_steps", plan.accumulation),
    ):
        config[key] = value
    share = f"global {plan.global_batch} / data parallel {plan.data}"
    places.setdefault("train_micro_batch_size_per_gpu", f"worked out: {share} / accumulation {plan.accumulation}")
    places.setdefault("gradient_accumulation_steps", f"worked out: {share} / micro {plan.micro_batch}")
    return plan


def _gradient_clipping(config: dict[str, Any], places: Provenance, experiment: Experiment, origins: Origins) -> None:
    ours = experiment.optimizer.gradient_clipping
    if _agree(config, places, "gradient_clipping", "optimizer.gradient_clipping", ours, origins) is None:
        # Left out, DeepSpeed 0.19 would clip at 1.0; the paper does not clip.
        config["gradient_clipping"] = 0.0
        places["gradient_clipping"] = "neither side: off"


def _precision(config: dict[str, Any], places: Provenance, experiment: Experiment, origins: Origins) -> str:
    ours = experiment.engine.precision
    bf16 = config.setdefault("bf16", {})
    if "enabled" not in bf16:
        bf16["enabled"] = ours == "bf16"
        places["bf16.enabled"] = "neither side: fp32" if ours is None else _place("engine.precision", origins)
    theirs = "bf16" if bf16["enabled"] else "fp32"
    if ours is not None and ours != theirs:
        raise InputError(
            f"{_place('engine.precision', origins)}: engine.precision is {ours}, but {places['bf16.enabled']}: "
            f"bf16.enabled is {str(bf16['enabled']).lower()}; name the {ours} JSON in engine.deepspeed, or leave "
            f"engine.precision out"
        )
    return theirs


def _agree(config: dict[str, Any], places: Provenance, theirs: str, ours: str, value: Any, origins: Origins) -> Any:
    """Return what the two keys agree on, having filled DeepSpeed's from the experiment's; None: neither is given."""
    place = _place(ours, origins)
    if value is None:
        return config.get(theirs)
    if theirs not in config:
        config[theirs] = value
        places[theirs] = f"{place}: {ours}"
    elif config[theirs] != value:
        raise InputError(
            f"{places[theirs]}: {theirs} is {config[theirs]}, but {place}: {ours} is {value}; make them equal, as with "
            f"--set {ours}={config[theirs]} or --set engine.overrides.{theirs}={value}"
        )
    return value


def _place(key: str, origins: Origins) -> str:
    """Return where the experiment says `key`, or the section that it lies in."""
    name = key
    while name:
        if name in origins:
            return origins[name]
        name = name.rpartition(".")[0]
    return "the experiment"
