"""Means must be exact over any split into micro-batches and ranks; speed counts training time only."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3ae_scale.model import Losses
from m3ae_scale.training.meters import LossSums, Meters, progress_line

# One sample: objective, (image loss or None), (text loss, accuracy) or None, tokens.
numbers = st.floats(0, 100, width=32)
samples = st.lists(
    st.tuples(numbers, st.none() | numbers, st.none() | st.tuples(numbers, st.floats(0, 1, width=32))), max_size=12
)


def micro_batch(content):
    """What LossSums reads of a micro-batch and its losses."""
    image = torch.tensor([i or 0.0 for _, i, _ in content])
    text = torch.tensor([t[0] if t else 0.0 for _, _, t in content])
    accuracy = torch.tensor([t[1] if t else 0.0 for _, _, t in content])
    batch = SimpleNamespace(
        has_image=torch.tensor([i is not None for _, i, _ in content], dtype=torch.bool),
        has_text=torch.tensor([t is not None for _, _, t in content], dtype=torch.bool),
        tokens=3 * len(content),
    )
    return Losses(image, text, accuracy), torch.tensor([o if real((o, i, t)) else 0.0 for o, i, t in content]), batch


def real(sample):
    """A sample with neither image nor text is a stand-in: it has no loss and does not count."""
    return sample[1] is not None or sample[2] is not None


def mean(values):
    return math.fsum(values) / len(values)


@given(st.lists(st.lists(samples, max_size=3), min_size=1, max_size=4))
def test_means_are_those_of_all_samples_however_they_are_dealt(ranks):
    sums = []
    for micro_batches in ranks:
        losses = LossSums("cpu")
        for content in micro_batches:
            losses.add(*micro_batch(content))
        losses.means(lambda s: sums.append(s.clone()) or s)
    means, count, tokens = LossSums("cpu").means(lambda _: torch.stack(sums).sum(0))

    everything = [sample for micro_batches in ranks for content in micro_batches for sample in content]
    counted = [sample for sample in everything if real(sample)]
    expected = {}
    if counted:
        expected["loss"] = mean([o for o, _, _ in counted])
    if any(i is not None for _, i, _ in everything):
        expected["image_loss"] = mean([i for _, i, _ in everything if i is not None])
    if any(t for _, _, t in everything):
        expected["text_loss"] = mean([t[0] for _, _, t in everything if t])
        expected["text_accuracy"] = mean([t[1] for _, _, t in everything if t])
    assert means == pytest.approx(expected, rel=1e-12)
    assert (count, tokens) == (len(counted), 3 * len(everything))


class Clock:
    now = 100.0

    def __call__(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


def test_speed_counts_training_time_only_and_each_window_begins_anew():
    clock = Clock()
    flops = torch.tensor(6.0, dtype=torch.float64)
    meters = Meters("cpu", earlier_seconds=50.0, flops=lambda batch: flops, peak=9.0, clock=clock)
    content = [(1.0, 1.0, None)] * 8
    for seconds, norm in ((5.0, torch.tensor(3.0)), (1.0, 7.0), (2.0, torch.tensor(2.0))):
        meters.add(*micro_batch(content))
        clock.tick(seconds)
        meters.step(norm)
    with meters.paused():
        clock.tick(100.0)
    row = meters.report(remaining_steps=10, lr=1e-3)
    assert row["samples_per_second"] == pytest.approx(24 / 8)
    assert row["tokens_per_second"] == pytest.approx(72 / 8)
    assert row["model_flops_per_second"] == pytest.approx(18 / 8) and row["mfu"] == pytest.approx(2 / 8)
    assert "MFU 25.0%" in progress_line(3, 13, row)
    assert (row["gradient_norm"], row["gradient_norm_max"]) == (2.0, 7.0)
    assert (row["step_seconds"], row["step_seconds_max"]) == (2.0, 5.0)
    assert row["seconds"] == pytest.approx(158.0)
    assert row["eta_seconds"] == pytest.approx(10 * (3.0 + 100.0) / 2)  # the first step is no measure; pauses are

    meters.add(*micro_batch([(4.0, 4.0, None)]))
    clock.tick(0.5)
    meters.step(None)
    row = meters.report(remaining_steps=9, lr=1e-3)
    assert row["model_flops_per_second"] == pytest.approx(6 / 0.5)
    assert row["loss"] == 4.0 and row["samples_per_second"] == pytest.approx(2.0)
    assert row["step_seconds_max"] == pytest.approx(0.5) and "gradient_norm" not in row


def test_adding_never_reads_the_device():
    # A meta tensor cannot be read: .tolist(), .item() and bool() raise on it.
    losses, objective, batch = micro_batch([(1.0, 2.0, (3.0, 0.5))])
    meters = Meters("meta")
    batch.has_image, batch.has_text = batch.has_image.to("meta"), batch.has_text.to("meta")
    meters.add(Losses(*(t.to("meta") for t in losses)), objective.to("meta"), batch)
    meters.step(torch.zeros((), device="meta"))


def test_progress_line_keeps_its_columns():
    full = {
        "loss": 1.2345, "image_loss": 0.9012, "text_loss": 3.2012, "samples_per_second": 812.3,
        "tokens_per_second": 45123.0, "lr": 1.5e-4, "eta_seconds": 130.2,
    }  # fmt: skip
    line = progress_line(120, 2000, full)
    assert line == (
        "step  120/2000  loss  1.2345  image 0.9012  text  3.2012  812.3 samples/s  45.1k tokens/s  "
        "lr 1.5e-04  eta 2m10s"
    )
    bare = progress_line(1000, 2000, {"loss": 12.5, "text_loss": 10.25})
    assert [bare.index(word) for word in ("image", "text", "lr")] == [line.index(w) for w in ("image", "text", "lr")]


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.4, "9s"), (59.7, "1m00s"), (3599.6, "1h00m"), (11040, "3h04m"), (457200, "5d07h")]
)
def test_eta_is_written_in_two_units(seconds, text):
    assert progress_line(1, 2, {"eta_seconds": seconds}).endswith(f"eta {text}")
