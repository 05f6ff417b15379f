"""Builds the DeepSpeed operations that the tests use, so that no test with a time limit waits for g++."""

import os
import sys
from importlib import import_module
from pathlib import Path

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where ninja is
import_module("m3ae_scale.engine")  # names the accelerator, before DeepSpeed looks for one
accelerator = import_module("deepspeed.accelerator").get_accelerator()

for name in ("CPUAdamBuilder", "ShareMemCommBuilder"):
    builder = accelerator.create_op_builder(name)
    if builder is not None:
        builder.load(verbose=False)
