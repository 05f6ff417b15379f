"""Tells in words what a job will be on each number of nodes that it may get."""

from collections.abc import Iterator, Mapping

from m3ae_scale.slurm.job import Shape


def describe(shapes: Mapping[int, Shape]) -> Iterator[str]:
    """Yield the lines for `shapes`, by nodes granted: each shape once, with the grants that lead to it."""
    for used in sorted({shape.nodes for shape in shapes.values()}):
        granted = [nodes for nodes, shape in shapes.items() if shape.nodes == used]
        shape = shapes[granted[0]]
        idle = f" (of up to {granted[-1]}: the global batch divides on no more)" if granted[-1] > used else ""
        yield f"on {used} node{'s' * (used > 1)}{idle}"
        yield from _lines(shape)


def _lines(shape: Shape) -> Iterator[str]:
    topology, plan, states = shape.topology, shape.resolved.plan, shape.states
    stage = shape.resolved.config["zero_optimization"]["stage"]
    micro = f"about {plan.micro_batch}" if plan.micro_tokens else str(plan.micro_batch)
    host = f" and {_bytes(states.host)} on the host" if states.host else ""
    copies = f", copies for the offloaded optimizer {_bytes(states.copies)}" if states.copies else ""
    yield (
        f"  topology  {topology.world} ranks = tensor {topology.tensor} x data {topology.data}, "
        f"ZeRO {stage}, {shape.resolved.precision}"
    )
    yield f"  batch     {plan.global_batch} = micro {micro} x data {plan.data} x accumulation {plan.accumulation}"
    yield (
        f"  memory    {_bytes(states.device)} per rank{host}, projected, without activations: "
        f"parameters {_bytes(states.parameters)}, gradients {_bytes(states.gradients)}, "
        f"optimizer {_bytes(states.optimizer)}{copies}"
    )


def _bytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
