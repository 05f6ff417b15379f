"""Every backend of every operation that runs here, side by side: time, bytes, FLOPs and the share of the roofline.

    python benchmarks/kernels.py [--size base] [--micro-batch 8] [--device cpu] [--precision fp32]

Shapes are those of a micro-batch of pairs with captions as long as CC12M's. FLOPs are those that are useful (attention
by squared lengths), bytes those of inputs and outputs alone; forward and backward. The roofline is what the larger of
FLOPs / ceiling and bytes / bandwidth allows: of a large matrix product and a large copy, the fastest of those that were
measured between the operations. Backends take turns, the median of the rounds counts; "times" is against the first
backend of the operation, the default here.
"""

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from m3ae_scale.batch import Stream
from m3ae_scale.bench.results import append_row
from m3ae_scale.bench.synthetic import batches
from m3ae_scale.config import ModelConfig, OptimizerConfig
from m3ae_scale.kernels import adam, attention, layer_norm, linear, linear_cross_entropy
from m3ae_scale.kernels.peak import matmul_ceiling, synchronise
from m3ae_scale.model.flops import pairs_per_sample
from m3ae_scale.sizes import Tower

VOCABULARY = 30522


class Operation(NamedTuple):
    """One operation at one shape, and its backends."""

    name: str
    backends: dict[str, Callable[[], None]]
    flops: float
    bytes: float


def forward_backward(function: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    """Call a function and its gradient."""

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        output = function()
        output.backward(torch.ones_like(output))

    return run


def leaf(*shape: int, device: str, dtype: torch.dtype) -> Tensor:
    """Random numbers that take a gradient."""
    return torch.randn(*shape, device=device, dtype=dtype).mul_(0.1).requires_grad_()


def attention_of(tower: Tower, stream: Stream, place: str, device: str, dtype: torch.dtype) -> Operation:
    """Attention of one block of a tower."""
    tokens, packing = len(stream.order), attention.packing_of(stream)
    qkv = leaf(tokens, 3, tower.heads, tower.dim // tower.heads, device=device, dtype=dtype)
    names = [name for name in attention.available(device, dtype) if name != "reference"]
    backends = {
        name: forward_backward(lambda name=name: attention.BACKENDS[name](qkv, packing), [qkv])  # type: ignore[misc]
        for name in names
    }
    flops = 3 * 4 * tower.dim * float(pairs_per_sample(stream).sum())
    return Operation(f"attention, {place}", backends, flops, 2 * 4 * tokens * tower.dim * qkv.element_size())


def operations(model: ModelConfig, micro_batch: int, device: str, dtype: torch.dtype) -> list[Operation]:
    """Every operation that has a choice of backends."""
    batch = batches(model, VOCABULARY, micro_batch, 1)[0].to(device)
    encoder, decoder = model.encoder.shape, model.decoder.shape
    size = torch.finfo(dtype).bits // 8
    found = [
        attention_of(encoder, batch.encoder, "encoder", device, dtype),
        attention_of(decoder, batch.decoder, "decoder", device, dtype),
    ]
    for place, tower, stream in (("encoder", encoder, batch.encoder), ("decoder", decoder, batch.decoder)):
        rows, inputs, outputs = len(stream.order), tower.dim, tower.mlp_dim
        tensors = [
            leaf(*shape, device=device, dtype=dtype) for shape in ((rows, inputs), (outputs, inputs), (outputs,))
        ]
        products = {
            name: forward_backward(lambda t=tensors, name=name: linear.BACKENDS[name](*t), tensors)  # type: ignore[misc]
            for name in linear.available(device, dtype)
        }
        moved = 2 * size * (rows * inputs + outputs * inputs + rows * outputs)
        found.append(Operation(f"linear, {place}", products, 6.0 * rows * inputs * outputs, moved))
    x = leaf(len(batch.decoder.order), decoder.dim, device=device, dtype=dtype)
    norms = {name: layer_norm.BACKENDS[name](decoder.dim).to(device, dtype) for name in layer_norm.available(device)}
    norm_backends = {name: forward_backward(lambda m=m: m(x), [x]) for name, m in norms.items()}  # type: ignore[misc]
    found.append(Operation("layer_norm, decoder", norm_backends, 0.0, 4 * x.numel() * size))

    target = batch.words.index_select(0, batch.text_targets.token)
    hidden = leaf(len(target), decoder.dim, device=device, dtype=dtype)
    weight = leaf(VOCABULARY, decoder.dim, device=device, dtype=dtype)
    bias = leaf(VOCABULARY, device=device, dtype=dtype)
    losses = {
        name: forward_backward(
            lambda name=name: linear_cross_entropy.BACKENDS[name](hidden, weight, bias, target, None)[0],  # type: ignore[misc]
            [hidden, weight, bias],
        )
        for name in linear_cross_entropy.available(device)
    }
    head = 2.0 * len(target) * decoder.dim * VOCABULARY
    found.append(Operation("text_loss", losses, 3 * head, 2 * (weight.numel() + 2 * hidden.numel()) * size))

    steps = {}
    for name in adam.available(device, offloaded=False):
        parameters = [leaf(decoder.dim, 4 * decoder.dim, device=device, dtype=torch.float32) for _ in range(8)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer = adam.build_adam(name, [{"params": parameters, "weight_decay": 0.05}], OptimizerConfig(), 1e-4)
        steps[name] = optimizer.step
    found.append(Operation("adam", steps, 0.0, 8 * 4 * decoder.dim**2 * 4 * 7))
    return found


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.empty(2**28 if device.type == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), device) for _ in range(7)]
    return 2 * source.numel() * 4 / statistics.median(seconds[2:])


def timed(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def in_turns(operation: Operation, rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each backend in each round, after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in operation.backends}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample(list(seconds), len(seconds)):
            took = timed(operation.backends[name], device)
            if number:
                seconds[name].append(took)
    return seconds


def main() -> None:
    """Measure, print and append rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="benchmarks/results/kernels.jsonl")
    options = parser.parse_args()
    precision = options.precision or ("bf16" if options.device == "cuda" else "fp32")
    dtype, device = (torch.bfloat16 if precision == "bf16" else torch.float32), torch.device(options.device)
    model = ModelConfig.model_validate({"size": options.size})
    ceiling, stream = 0.0, 0.0
    measured: list[tuple[Operation, dict[str, list[float]]]] = []
    for operation in operations(model, options.micro_batch, options.device, dtype):
        ceiling, stream = max(ceiling, matmul_ceiling(device, dtype)), max(stream, bandwidth(device))
        measured.append((operation, in_turns(operation, options.rounds, device)))
    print(f"{options.size}, {options.micro_batch} pairs, {precision} on {options.device}:", end=" ")
    print(f"matmul ceiling {ceiling / 1e9:.1f} GFLOP/s, copy {stream / 1e9:.1f} GB/s\n")
    print("| operation | backend | ms | times | GFLOP | MB | of roofline |\n|---|---|---|---|---|---|---|")
    for operation, seconds in measured:
        first = statistics.median(next(iter(seconds.values())))
        for name, values in seconds.items():
            median = statistics.median(values)
            floor = max(operation.flops / ceiling, operation.bytes / stream)
            columns = [operation.name, name, f"{1000 * median:.2f}", f"{median / first:.2f}"]
            columns += [f"{operation.flops / 1e9:.2f}", f"{operation.bytes / 1e6:.1f}", f"{floor / median:.0%}"]
            print(f"| {' | '.join(columns)} |", flush=True)
            cell = {"operation": operation.name, "backend": name, "size": options.size, "precision": precision}
            cell |= {"micro_batch": options.micro_batch, "device": options.device}
            figures = {"seconds": median, "fastest": min(values), "slowest": max(values), "times": median / first}
            figures |= {"flops": operation.flops, "bytes": operation.bytes, "roofline": floor / median}
            figures |= {"ceiling_flops_per_second": ceiling, "bytes_per_second": stream, "load": os.getloadavg()[0]}
            append_row(options.out, "kernels", cell, figures)


if __name__ == "__main__":
    main()
