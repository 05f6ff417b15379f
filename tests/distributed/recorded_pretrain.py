"""One rank of `m3ae-scale pretrain` that writes down the samples of every step, and can die at one."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from m3ae_scale.batch import Batch
from m3ae_scale.config import load_experiment
from m3ae_scale.training import feed, pretrain

_, experiment, name, micro_batch, die_after = sys.argv
rank = os.environ["RANK"]


def recorded(batches: Iterator[Batch], groups: object) -> Iterator[Batch]:
    """Yield the batches, each one's sample names appended to a file of this rank when it is asked for."""
    with open(f"consumed_{name}_{os.getppid()}_{rank}.jsonl", "a") as file:
        for number, batch in enumerate(plain(batches, groups)):
            if number == int(die_after):
                os.kill(os.getpid(), signal.SIGKILL)
            file.write(json.dumps(batch.keys) + "\n")
            file.flush()
            yield batch


plain, feed.on_device = feed.on_device, recorded
loaded, origins = load_experiment(
    experiment,
    [
        f"name={name}",
        f"engine.overrides.train_micro_batch_size_per_gpu={micro_batch}",
        "run.validate_every=0",
        "run.pictures_every=0",
        "run.checkpoint_every=4",
    ],
)
pretrain.pretrain(loaded, origins, Path(experiment), resume=True)
os._exit(0)  # as cli.main.program ends: Gloo's threads may abort a process that Python takes apart
