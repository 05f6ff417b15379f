"""LARS (You et al. 2017), as MAE's linear probe uses it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled, tensor by tensor, to the weights' own length; vectors are left as SGD.

    Source: facebookresearch/mae util/lars.py, which takes it from MoCo v3.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.9, trust: float = 0.001):
        super().__init__(params, {"lr": lr, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                change = parameter.grad
                if parameter.ndim > 1:
                    length, of_change = parameter.norm(), change.norm()
                    scaled = group["trust"] * length / of_change
                    change = change * torch.where((length > 0) & (of_change > 0), scaled, torch.ones_like(length))
                state = self.state[parameter]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(parameter)
                state["mu"].mul_(group["momentum"]).add_(change)
                parameter.sub_(group["lr"] * state["mu"])
