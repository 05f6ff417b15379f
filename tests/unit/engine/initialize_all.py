"""Run as a script: hand every JSON of configs/ds/ to deepspeed.initialize as it is, and train a little with it.

Prints one JSON object: file name -> losses of three steps.
"""

import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
from torch import nn

STEPS = 3


def main() -> None:
    """Train a small module with each file named on the command line."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
    deepspeed.init_distributed("gloo")
    losses = {Path(name).name: train(json.loads(Path(name).read_text())) for name in sys.argv[2:]}
    print(json.dumps(losses), flush=True)
    os._exit(0)  # as cli.main.program ends: Gloo's threads may abort a process that Python takes apart


def train(config: dict) -> list[float]:
    """Return the losses of a few steps on one batch."""
    torch.manual_seed(0)
    zero = config["zero_optimization"]
    with deepspeed.zero.Init(config_dict_or_path=config, enabled=zero["stage"] == 3):
        model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 4))
    adam = deepspeed.ops.adam.DeepSpeedCPUAdam if "offload_optimizer" in zero else torch.optim.AdamW
    engine, *_ = deepspeed.initialize(model=model, optimizer=adam(model.parameters(), lr=1e-2), config=config)
    dtype = torch.bfloat16 if config["bf16"]["enabled"] else torch.float32
    x = torch.randn(8, 16, dtype=dtype, device=engine.device)
    losses = []
    for _ in range(STEPS):
        loss = engine(x).float().square().mean()
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    assert next(engine.module.parameters()).dtype == dtype
    engine.destroy()
    return losses


if __name__ == "__main__":
    main()
