"""DeepSpeed: its final config, the engine built from the model, one optimizer step, checkpoints."""

import os
from ctypes.util import find_library

# Without a GPU driver, say so before DeepSpeed is imported: left to find out, it warns on every rank.
if find_library("cuda") is None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
