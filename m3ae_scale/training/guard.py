"""The guard: a step that would harm the run is not applied, on any rank, and none is left out without a word.

Before an optimizer step the ranks add up what their samples lost, and which of them met a loss that is not finite: one
small reduction that travels during the last backward pass. A step is refused when a loss is not finite, or when the
mean loss stands too far above the steps before it; and DeepSpeed refuses it when a gradient is not finite. The window
of samples is then written down, sample by sample, and passed over, or the run goes back to its last checkpoint first.
"""

import json
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from m3ae_scale.batch import Batch
from m3ae_scale.config import Experiment
from m3ae_scale.errors import EXIT_MISTAKE, InputError
from m3ae_scale.model import Losses
from m3ae_scale.parallel.groups import Groups
from m3ae_scale.training.json_lines import append_line, read_lines

Action = Literal["skip", "rollback", "stop"]
_ENOUGH = 20  # applied steps before a loss can be called a spike
_NARROW = 0.01  # a spread is at least this share of the median: a run that hardly moves is not full of spikes
_MAD_TO_DEVIATION = 1.4826  # of a normal distribution


class LossHistory:
    """The losses of the last applied steps, and how far above them a loss stands."""

    def __init__(self, window: int, losses: list[float] | None = None):
        self.losses = deque(losses or [], maxlen=window)

    def spreads_above(self, loss: float) -> float:
        """Return (loss - median) / spread, the spread from the median absolute deviation; 0 while there are too few."""
        if len(self.losses) < min(_ENOUGH, self.losses.maxlen or 0):
            return 0.0
        median = statistics.median(self.losses)
        deviation = _MAD_TO_DEVIATION * statistics.median(abs(past - median) for past in self.losses)
        spread = max(deviation, _NARROW * abs(median))
        return (loss - median) / spread if spread > 0 else 0.0


class _Seen(NamedTuple):
    keys: tuple[str, ...]
    objective: Tensor  # (S,)
    losses: Losses


class Guard:
    """Judges every step of one run; all ranks make it and call it at the same points."""

    def __init__(self, experiment: Experiment, groups: Groups, folder: Path, passed_over: set[int]):
        """folder: the run's, whose guard/ takes the troubles; passed_over: `condemned_steps` of it, on every rank."""
        self._config, self._groups = experiment.guard, groups
        self._global_batch = experiment.batch.global_
        self._folder, self._passed_over = folder / "guard", passed_over
        self._history = LossHistory(self._config.window)
        self.events_file = events_file(folder)
        self._troubles: list[int] = []  # steps not applied by this life
        self._seen: list[_Seen] = []
        self._sums = torch.zeros(1 + groups.topology.world, dtype=torch.float64, device=groups.device)
        self._pending: Any = None
        self._loss = math.nan
        self.refused = 0  # steps that were not applied, in this life

    def leaves_out(self, step: int) -> bool:
        """Tell whether `step` lies in a window that a rollback has condemned."""
        return step in self._passed_over

    def see(self, losses: Losses, objective: Tensor, batch: Batch, last: bool) -> None:
        """Take in one micro-batch before its backward pass; with the last one the ranks begin to add up."""
        self._seen.append(_Seen(batch.keys, objective.detach(), Losses(*(loss.detach() for loss in losses))))
        if not last:
            return
        each = torch.cat([seen.objective for seen in self._seen]).double()
        finite = each.isfinite()
        self._sums.zero_()
        if self._groups.tensor_rank == 0:  # the others of its group hold the same samples
            self._sums[0] = torch.where(finite, each, 0.0).sum()
        self._sums[1 + self._groups.rank] = (~finite).sum()
        self._pending = dist.all_reduce(self._sums, async_op=True)

    def objection(self) -> str | None:
        """Return why the step must not be applied, None if it may; waits for the ranks to have added up."""
        self._pending.wait()
        total, *broken = self._sums.tolist()
        self._loss = total / self._global_batch
        ranks = [rank for rank, count in enumerate(broken) if count]
        if ranks:
            where = ", ".join(map(str, ranks[:8])) + (" and others" if len(ranks) > 8 else "")
            return f"the loss of {int(sum(broken))} samples is not finite (rank {where})"
        above = self._history.spreads_above(self._loss)
        if 0 < self._config.spread < above:
            median = statistics.median(self._history.losses)
            return f"the loss {self._loss:.4g} stands {above:.1f} spreads above {median:.4g}, the median before it"
        return None

    def applied(self) -> None:
        """Note that the step was applied."""
        self._history.losses.append(self._loss)
        self._seen.clear()

    def refuse(self, step: int, reason: str) -> Action:
        """Write down the step that was not applied, counted from 0; returns what the run does now.

        Raises InputError on the first rank, and SystemExit on the others, when there were too many.
        """
        self._write_samples(step)
        self._seen.clear()
        self.refused += 1
        self._troubles.append(step)
        recent = [past for past in self._troubles if abs(step - past) < self._config.window]
        action: Action = self._config.policy
        if action == "stop" or len(recent) > self._config.limit:
            self._tell(step, reason, "stop")
            self._give_up(step, reason, len(recent))
        if action == "rollback":
            self._passed_over |= _window(step, self._config.margin)
        self._tell(step, reason, action)
        return action

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, so that a resumed run judges as one that never stopped."""
        return {"losses": list(self._history.losses)}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go back to the `state` of a checkpoint; None: it has none."""
        self._history = LossHistory(self._config.window, (state or {}).get("losses"))

    def samples_file(self, step: int) -> Path:
        """Return where this rank writes the samples of a step that was not applied."""
        return self._folder / f"step_{step:08d}.rank{self._groups.rank}.jsonl"

    def _write_samples(self, step: int) -> None:
        """Write each sample's name and losses, the worst first."""
        if self._groups.tensor_rank != 0:
            return
        rows = [
            {"sample": key, "micro_batch": number, **dict(zip(("objective", *Losses._fields), values, strict=True))}
            for number, seen in enumerate(self._seen)
            for key, *values in zip(seen.keys, *(t.tolist() for t in (seen.objective, *seen.losses)), strict=True)
        ]
        rows.sort(key=lambda row: (math.isfinite(row["objective"]), -row["objective"]))
        self._folder.mkdir(parents=True, exist_ok=True)
        self.samples_file(step).write_text("".join(json.dumps(_finite(row)) + "\n" for row in rows))

    def _tell(self, step: int, reason: str, action: Action) -> None:
        if not self._groups.first:
            return
        event = {"step": step, "reason": reason, "loss": self._loss, "action": action, "margin": self._config.margin}
        append_line(self.events_file, _finite(event))
        then = {"skip": "passed over", "rollback": "back to the last checkpoint", "stop": "the run stops"}[action]
        print(f"guard: step {step + 1} not applied, {then}: {reason}; its samples: {self._folder}", flush=True)

    def _give_up(self, step: int, reason: str, count: int) -> None:
        if not self._groups.first:
            raise SystemExit(EXIT_MISTAKE)  # the first rank says why
        more = f", number {count} within {self._config.window} steps (guard.limit {self._config.limit})" * (count > 1)
        raise InputError(
            f"{self._folder}: step {step + 1} cannot be applied{more}: {reason}; look at the samples listed there, "
            f"or lower optimizer.lr, and go on with --resume"
        )


def events_file(folder: Path) -> Path:
    """Return where a run writes down the steps that were not applied."""
    return folder / "guard" / "events.jsonl"


def condemned_steps(folder: Path) -> set[int]:
    """Return the steps that the rollbacks of earlier lives of the run in `folder` have condemned."""
    events = events_file(folder)
    rows = list(read_lines(events)) if events.exists() else []
    windows = [_window(row["step"], row["margin"]) for row in rows if row["action"] == "rollback"]
    return set().union(*windows)


def _window(step: int, margin: int) -> set[int]:
    return set(range(max(step - margin, 0), step + margin + 1))


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` as JSON can hold it: numbers that are not finite by their name."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
