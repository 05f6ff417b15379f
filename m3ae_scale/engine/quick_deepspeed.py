"""DeepSpeed without what only its unused parts import: MLflow (its tuner) and the compiler (its Muon optimizer).

Together they take five seconds of processor time at the start of every rank.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

_TUNER_WANTS = "mlflow"
_hidden = _TUNER_WANTS not in sys.modules
if _hidden:
    sys.modules[_TUNER_WANTS] = None  # type: ignore[assignment]  # reads as not installed, which DeepSpeed allows
try:
    import deepspeed
finally:
    if _hidden:
        del sys.modules[_TUNER_WANTS]

logger = deepspeed.utils.logger

__all__ = ["deepspeed", "logger"]


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function or _as_it_is


_compile = torch.compile
torch.compile = _as_it_is  # type: ignore[assignment]  # decorates functions as ZeRO imports that module
try:
    import_module("deepspeed.runtime.zero.muon.muon_optimizer")
finally:
    torch.compile = _compile
