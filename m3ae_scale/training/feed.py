"""This rank's micro-batches, on its device, from any step on: a rollback opens them anew."""

from collections.abc import Callable, Iterator, Mapping

from m3ae_scale.batch import Batch
from m3ae_scale.data import Cursor, TrainingData
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.training.share import on_device


class Feed:
    """An endless iterator over micro-batches, `accumulation` of them a step."""

    def __init__(self, open_at: Callable[[Cursor | None], TrainingData | None], groups: Groups, cursor: Cursor | None):
        """open_at: opens this rank's data at a cursor; it gives None on a rank that receives from its group."""
        self._open_at, self._groups = open_at, groups
        self.rewind(cursor)

    def rewind(self, cursor: Cursor | None) -> None:
        """Go on from `cursor`, the `state` of some step; None: from the beginning."""
        self._data = self._open_at(cursor)
        self._batches = on_device(self._data, self._groups)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    @property
    def samples_per_epoch(self) -> int:
        """Samples of all sources together; 0 on a rank that does not read."""
        return self._data.samples_per_epoch if self._data is not None else 0

    @property
    def bad_samples(self) -> Mapping[str, int]:
        """By source, the bad samples that this rank has met."""
        return self._data.bad_samples if self._data is not None else {}

    def state(self, step: int) -> Cursor | None:
        """Return the cursor before `step`; None on a rank that does not read."""
        return self._data.state(step) if self._data is not None else None
