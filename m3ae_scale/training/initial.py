"""The values that a run begins with where it does not draw them all: somebody's weights, named by train.init_from."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from m3ae_scale.config import Experiment
from m3ae_scale.engine.checkpoint.folder import list_checkpoints
from m3ae_scale.interop.fit import fit
from m3ae_scale.interop.read import read_found


def initial_values(
    experiment: Experiment, vocabulary: int, resumed: Path | None, verify: bool = False
) -> Mapping[str, np.ndarray]:
    """Return the whole initial value of each parameter that train.init_from has, float32 by name; the rest is drawn.

    resumed: the run folder that goes on, if one does: where it has a checkpoint, that holds every value.
    verify: hash what is read, and say what fits; for the first rank, before the others read.
    Raises InputError for weights that cannot be read or do not fit.
    """
    if experiment.train.init_from is None or (resumed is not None and list_checkpoints(resumed)):
        return {}
    values, line = fit(read_found(Path(experiment.train.init_from), verify), experiment, vocabulary)
    if verify:
        print(f"init from  {line}", flush=True)
    return values
