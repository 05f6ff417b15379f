"""What the ranks do: begin with somebody's weights and score one global batch."""

import os
from pathlib import Path
from typing import Any

import torch
from on_ranks import deepspeed_config
from tiny import GLOBAL_BATCH, PATCH_DIM, VOCABULARY, experiment, global_batch

from m3ae_scale.data.pack import pack
from m3ae_scale.engine.build import build
from m3ae_scale.model.losses import objective
from m3ae_scale.parallel.groups import close_groups, open_groups
from m3ae_scale.parallel.launch import find_ranks
from m3ae_scale.training.initial import initial_values

torch.set_num_threads(1)


def first_losses(job: dict[str, Any]) -> list[float]:
    """For each ZeRO stage of the job, the mean loss of the first batch; nothing dropped."""
    groups = open_groups(find_ranks(os.environ), job["tensor"])
    share = GLOBAL_BATCH // groups.topology.data
    mine = global_batch(0)[groups.data_rank * share : (groups.data_rank + 1) * share]
    losses = []
    for stage in job["stages"]:
        tiny = experiment(train={"length": "1 steps", "init_from": job["path"]})
        given = initial_values(tiny, VOCABULARY, None)
        built = build(tiny, VOCABULARY, groups, deepspeed_config(groups.topology.data, share, 1, stage), given)
        built.engine.eval()
        batch = pack(mine, tiny.loss, PATCH_DIM)
        with torch.no_grad():
            total = objective(built.engine(batch), batch, tiny.loss).sum().double()[None]
        losses.append(groups.sum(total).item() / GLOBAL_BATCH)
    close_groups()
    assert Path(job["path"]).exists()
    return losses
