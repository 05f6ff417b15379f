"""What the peers in PyTorch share: images on the device, and a training step around a loss."""

from collections.abc import Callable
from typing import Any

import torch
from serve import read_batches, serve
from torch import Tensor


def images_of(task: dict[str, Any]) -> list[Tensor]:
    """Read the images of the micro-batches as image models take them: (B, 3, side, side), on the task's device."""
    return [
        torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).contiguous().to(task["device"])
        for batch in read_batches(task)
    ]


def serve_training(
    task: dict[str, Any], optimizer: torch.optim.Optimizer, loss: Callable[[int], Tensor], info: dict[str, Any]
) -> None:
    """Serve steps that lower `loss`, a function of the step's number, in the task's precision."""
    device = torch.device(task["device"])
    amp = torch.autocast(device.type, torch.bfloat16, enabled=task["precision"] == "bf16")

    def step(number: int) -> None:
        with amp:
            value = loss(number)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    serve(step, torch.cuda.synchronize if device.type == "cuda" else lambda: None, info)
