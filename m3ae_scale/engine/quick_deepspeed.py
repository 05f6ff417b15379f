"""DeepSpeed without MLflow: its tuner, which nothing here uses, imports it, seconds at the start of every rank."""

import sys

_HIDDEN = "mlflow" not in sys.modules
if _HIDDEN:
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # reads as not installed, which DeepSpeed allows
try:
    import deepspeed
finally:
    if _HIDDEN:
        del sys.modules["mlflow"]

logger = deepspeed.utils.logger

__all__ = ["deepspeed", "logger"]
