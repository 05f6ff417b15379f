"""Bytes that a forward pass leaves for the backward pass, a sample, by size and recompute policy.

    python benchmarks/activations.py [--size small --size base] [--micro-batch 8]

Counted, not estimated: every storage that the real model makes in a forward pass in bf16, and that is still alive when
it ends. Weights are not among them. Nothing here depends on the hardware but the attention backend: the padded one of a
CPU keeps padded queries, keys and values too, which a variable-length kernel of a GPU does not.
"""

import argparse
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m3ae_scale.bench.results import append_row
from m3ae_scale.bench.synthetic import batches
from m3ae_scale.config import AugmentConfig, KernelConfig, LossConfig, ModelConfig
from m3ae_scale.engine.recompute import apply_recompute
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import M3AE, PlainLayers
from m3ae_scale.model.losses import objective

VOCABULARY = 30522
POLICIES = ("none", "selective", "every_2", "full")


class Alive(TorchDispatchMode):
    """Knows the bytes of every storage that was made inside it, and is not yet freed."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.bytes += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.bytes -= size


def kept(build: Callable[[], M3AE], policy: str, model: ModelConfig, micro_batch: int) -> int:
    """Bytes that one forward pass of `micro_batch` pairs leaves."""
    built = build()
    apply_recompute(built, policy)
    (batch,) = batches(model, VOCABULARY, micro_batch, 1)
    with Alive() as alive:
        loss = objective(built(batch), batch, LossConfig()).mean()
        left = alive.bytes
    loss.backward()  # what was left was enough
    return left


def main() -> None:
    """Count, print and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", action="append", help="[default: small, base, large]")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--out", default="benchmarks/results/activations.jsonl")
    options = parser.parse_args()
    print(f"MB a pair, {options.micro_batch} pairs\n\n| size | linear | {' | '.join(POLICIES)} |")
    print("|---" * (2 + len(POLICIES)) + "|")
    for size in options.size or ["small", "base", "large"]:
        model, augment = ModelConfig.model_validate({"size": size}), AugmentConfig()
        for linear in ("torch", "fp8"):
            kernels = choose(KernelConfig(linear=linear), "cpu", torch.bfloat16)

            def build(model: ModelConfig = model, kernels: Any = kernels) -> M3AE:
                layers = PlainLayers(kernels.linear)
                return M3AE(model, VOCABULARY, augment.mean, augment.std, layers, kernels).bfloat16()  # noqa: B023

            columns = []
            for policy in POLICIES:
                each = kept(build, policy, model, options.micro_batch) / options.micro_batch
                cell = {"size": size, "linear": linear, "recompute": policy, "micro_batch": options.micro_batch}
                append_row(options.out, "activations", cell, {"bytes_per_pair": each, "kernels": str(kernels)})
                columns.append(f"{each / 1e6:.0f}")
            print(f"| {size} | {linear} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()
