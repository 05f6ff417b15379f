"""When a checkpoint is written: while training waits, or in the background; and what becomes of one that fails."""

from pathlib import Path

from m3ae_scale.config import Experiment
from m3ae_scale.engine.build import Built
from m3ae_scale.engine.checkpoint import BackgroundSave, SaveFailed, prune_checkpoints, save_checkpoint
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.training.feed import Feed
from m3ae_scale.training.guard import Guard
from m3ae_scale.training.metrics_file import read_metrics


class Saver:
    """Writes the checkpoints of one run. Every method is collective. When the disk is full the old ones stay."""

    def __init__(self, folder: Path, experiment: Experiment, built: Built, groups: Groups, feed: Feed, guard: Guard):
        self._folder, self._experiment, self._built, self._groups = folder, experiment, built, groups
        self._feed, self._guard = feed, guard
        self._pending: tuple[int, BackgroundSave] | None = None

    def save(self, step: int, wait: bool) -> None:
        """Save the state after `step` steps; unless told to `wait`, in the background where the experiment says so."""
        self.settle(wait=True)
        progress = {
            "step": step,
            "cursor": self._feed.state(step),
            "guard": self._guard.state(),
            "experiment": self._experiment.model_dump(mode="json", by_alias=True),
        }
        try:
            if self._experiment.run.save_in_background and not wait:
                self._pending = (step, BackgroundSave(self._folder, self._built, self._groups, progress))
            else:
                self._published(step, save_checkpoint(self._folder, self._built, self._groups, progress))
        except SaveFailed as problem:
            self._failed(step, problem)

    def settle(self, wait: bool = False) -> None:
        """Publish the checkpoint that is being written, if every rank has written its share; wait: until they have."""
        if self._pending is None:
            return
        step, pending = self._pending
        try:
            saved = pending.settle(wait)
        except SaveFailed as problem:
            self._pending = None
            self._failed(step, problem)
            return
        if saved is not None:
            self._pending = None
            self._published(step, saved)

    def _failed(self, step: int, problem: SaveFailed) -> None:
        if self._groups.first:
            print(f"warning: checkpoint of step {step} not written: {problem}", flush=True)

    def _published(self, step: int, saved: Path) -> None:
        if not self._groups.first:
            return
        print(f"checkpoint of step {step}: {saved}", flush=True)
        metrics = self._folder / "metrics.jsonl"
        rows = read_metrics(metrics) if metrics.exists() else []
        losses = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
        run = self._experiment.run
        prune_checkpoints(self._folder, run.keep_checkpoints, run.keep_every, losses)
