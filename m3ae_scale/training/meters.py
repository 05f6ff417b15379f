"""What the loop measures: exact mean losses, speed, gradient norm. Nothing here waits for the device between logs."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from m3ae_scale.batch import Batch
from m3ae_scale.model import Losses

Reduce = Callable[[Tensor], Tensor]  # sums a 1-D float64 tensor over the data-parallel ranks


def one_process(sums: Tensor) -> Tensor:
    """Reduce over nobody: what a single process passes as its reduction."""
    return sums


class LossSums:
    """Sums and counts of the losses on the device; their quotients are means over samples, exact over any split."""

    def __init__(self, device: torch.device | str):
        # objective, samples, image, samples with an image, text, samples with a text, text accuracy
        self._sums = torch.zeros(7, dtype=torch.float64, device=device)
        self._tokens = 0
        self._before = (self._sums, self._tokens)

    def add(self, losses: Losses, objective: Tensor, batch: Batch) -> None:
        """Take in one micro-batch. objective: (S,), what the optimizer minimises for each sample."""
        images, texts = batch.has_image.double(), batch.has_text.double()
        samples = torch.maximum(images, texts)  # a stand-in, which has neither, is no sample
        columns = (objective, samples, losses.image, images, losses.text, texts, losses.text_accuracy)
        self._sums = self._sums + torch.stack([column.detach().double() for column in columns]).sum(1)
        self._tokens += batch.tokens

    def keep(self, wanted: bool) -> None:
        """Keep what was taken in since the last call, or forget it."""
        if wanted:
            self._before = (self._sums, self._tokens)
        else:
            self._sums, self._tokens = self._before

    def means(self, reduce: Reduce) -> tuple[dict[str, float], int, int]:
        """Sum over the ranks and start anew.

        Returns the mean losses (image_loss over samples that have an image, text_loss and text_accuracy over those
        that have a text; absent where there is none), and how many samples and tokens went in.
        """
        tokens = torch.tensor([self._tokens], dtype=torch.float64, device=self._sums.device)
        objective, samples, image, images, text, texts, accuracy, tokens_seen = reduce(
            torch.cat([self._sums, tokens])
        ).tolist()
        self._sums = torch.zeros_like(self._sums)
        self._tokens = 0
        self.keep(True)
        quotients = {
            "loss": (objective, samples),
            "image_loss": (image, images),
            "text_loss": (text, texts),
            "text_accuracy": (accuracy, texts),
        }
        means = {name: total / count for name, (total, count) in quotients.items() if count > 0}
        return means, int(samples), int(tokens_seen)


class Meters:
    """Everything between two log points of training.

    `add` once a micro-batch, `step` once an optimizer step, `report` once a log point (on every rank: it reduces).
    """

    def __init__(
        self,
        device: torch.device | str,
        reduce: Reduce = one_process,
        earlier_seconds: float = 0.0,
        flops: Callable[[Batch], Tensor] | None = None,
        peak: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """Begin to measure.

        earlier_seconds: training time of the lives before a resume, see metrics_file.trained_seconds; flops: model
        FLOPs of a step on a batch, a number on the device; peak: FLOP/s of all ranks' devices, by their datasheet.
        """
        self._losses = LossSums(device)
        self._reduce, self._clock = reduce, clock
        self._flops_of, self._peak = flops, peak
        self._flops = torch.zeros(1, dtype=torch.float64, device=device)
        self._gradient_norms: list[Tensor | float] = []
        self._step_seconds: list[float] = []
        self._born = self._window = self._last_step = clock()
        self._earlier = earlier_seconds
        self._pauses = 0.0  # seconds of this window that were not training
        self._steps, self._first_step_end = 0, self._born

    def add(self, losses: Losses, objective: Tensor, batch: Batch) -> None:
        """Take in one micro-batch. objective: (S,), what the optimizer minimises for each sample."""
        self._losses.add(losses, objective, batch)
        if self._flops_of is not None:
            self._flops += self._flops_of(batch)

    def step(self, gradient_norm: Tensor | float | None, applied: bool = True) -> None:
        """Close one optimizer step; what was added since the last one counts only if it was applied.

        gradient_norm: the global one, before clipping; a tensor is read at `report`.
        """
        self._losses.keep(applied)
        if gradient_norm is not None:
            self._gradient_norms.append(gradient_norm)
        now = self._clock()
        self._step_seconds.append(now - self._last_step)
        self._last_step = now
        self._steps += 1
        if self._steps == 1:  # the first step also builds kernels: no measure of those to come
            self._first_step_end = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep validation, checkpoints and pictures out of the speed (the ETA still counts them)."""
        began = self._clock()
        try:
            yield
        finally:
            pause = self._clock() - began
            self._pauses += pause
            self._last_step += pause

    def report(self, remaining_steps: int, lr: float) -> dict[str, float]:
        """Read the window since the last report, and begin the next. Every rank of `reduce` must call it.

        Returns loss, image_loss, text_loss, text_accuracy (means over samples); lr; gradient_norm (of the last step),
        gradient_norm_max; samples_per_second, tokens_per_second (all ranks, real tokens); step_seconds (median),
        step_seconds_max (by the host's clock); model_flops_per_second (all ranks, useful tokens only) and mfu, its
        share of the datasheet's, where known; seconds (of training so far, earlier lives included), eta_seconds.
        """
        values, samples, tokens = self._losses.means(self._reduce)  # reads the device: its work is done from here on
        now = self._clock()
        values["lr"] = lr
        if self._gradient_norms:
            norms = [float(norm) for norm in self._gradient_norms]
            values |= {"gradient_norm": norms[-1], "gradient_norm_max": max(norms)}
        training = now - self._window - self._pauses
        if training > 0:
            values |= {"samples_per_second": samples / training, "tokens_per_second": tokens / training}
        if self._flops_of is not None and training > 0:
            values["model_flops_per_second"] = float(self._reduce(self._flops)) / training
            self._flops = torch.zeros_like(self._flops)
            if self._peak is not None:
                values["mfu"] = values["model_flops_per_second"] / self._peak
        if self._step_seconds:
            values |= {
                "step_seconds": statistics.median(self._step_seconds),
                "step_seconds_max": max(self._step_seconds),
            }
        values["seconds"] = self._earlier + now - self._born
        if self._steps > 1:
            values["eta_seconds"] = remaining_steps * (now - self._first_step_end) / (self._steps - 1)
        self._gradient_norms, self._step_seconds = [], []
        self._window, self._pauses = now, 0.0
        return values


def progress_line(step: int, steps: int, values: dict[str, float]) -> str:
    """One log point for the human eye: columns stand under each other, a dash where there is no value."""

    def column(name: str, form: str, width: int) -> str:
        return (f"{values[name]:{form}}" if name in values else "-").rjust(width)

    tokens = f"{short(values['tokens_per_second'])}" if "tokens_per_second" in values else "-"
    eta = duration(values["eta_seconds"]) if "eta_seconds" in values else "-"
    return "  ".join(
        (
            f"step {step:>{len(str(steps))}}/{steps}",
            f"loss {column('loss', '.4f', 7)}",
            f"image {column('image_loss', '.4f', 6)}",
            f"text {column('text_loss', '.4f', 7)}",
            f"{column('samples_per_second', '.4g', 5)} samples/s",
            f"{tokens:>5} tokens/s",
            *([f"MFU {values['mfu']:.1%}"] if "mfu" in values else []),
            f"lr {column('lr', '.1e', 7)}",
            f"eta {eta}",
        )
    )


def short(number: float) -> str:
    """Write a number in at most five characters: 45.1k, 3.20M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Write seconds in its two largest units: 2m10s, 3h04m, 5d07h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
