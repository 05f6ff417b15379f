"""What the model fills in: sheets at several mask ratios, and hidden words with and without their image."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
import torch.nn.functional as F

from m3ae_scale.data.sample import RawSample, Sample
from m3ae_scale.evaluation.record import Outcome, write_outcome
from m3ae_scale.evaluation.scores import wilson
from m3ae_scale.evaluation.tables import percent
from m3ae_scale.evaluation.whole import Whole, load_whole, read_pairs
from m3ae_scale.model.pixels import to_bytes
from m3ae_scale.reports.chart import Series, line_chart
from m3ae_scale.reports.page import Section, picture_url
from m3ae_scale.training.pictures import examples, reconstruction_sheet

# How a caption is shown when its words are filled in: what the encoder sees beside the words that are left.
VIEWS = {
    "with": "its image, whole",
    "without": "no image",
    "other": "the image of another pair",
}


class Filled(NamedTuple):
    """How well hidden words were filled in."""

    right: int
    words: int
    nats: float  # mean cross-entropy a word

    @property
    def accuracy(self) -> float:
        """Share of the hidden words whose likeliest guess is right."""
        return self.right / max(1, self.words)


def reconstruct(path: str, shards: str | None, limit: int, ratios: Sequence[float], shown: int, device: str) -> Path:
    """Reconstruct pairs at each of `ratios`, and fill their words in with and without the image; returns the page."""
    whole = load_whole(path, device)
    pairs = read_pairs(whole, shards, limit)
    errors = {ratio: image_error(whole, pairs, ratio) for ratio in ratios}
    filled = {ratio: {view: fill_in(whole, pairs, ratio, view) for view in VIEWS} for ratio in ratios}
    metrics: dict[str, float] = {}
    for ratio in ratios:
        error = errors[ratio]
        metrics |= {f"image_mse_{ratio:g}": error} if error is not None else {}
        metrics |= {f"accuracy_{view}_image_{ratio:g}": one.accuracy for view, one in filled[ratio].items()}
        metrics |= {f"nats_{view}_image_{ratio:g}": one.nats for view, one in filled[ratio].items()}
    middle = ratios[len(ratios) // 2]
    outcome = Outcome(
        verb="reconstruct",
        title=f"What {whole.experiment.name} fills in",
        lead=f"{len(pairs)} pairs; masks are drawn from the pairs' names, the same for every model.",
        settings={"shards": shards or "the run's validation pairs", "pairs": len(pairs), "ratios": list(ratios)},
        metrics=metrics,
        details={"hidden_words": {str(ratio): filled[ratio]["with"].words for ratio in ratios}},
        tiles=[
            (f"words right, {view} image", percent(filled[middle][view].accuracy), f"{middle:.0%} hidden")
            for view in VIEWS
        ],
        sections=[_words_section(filled), *_sheets(whole, pairs[:shown], ratios)],
    )
    return write_outcome(outcome, whole.evaluated, whole.evaluated.folder("reconstruct"))


@torch.no_grad()
def image_error(whole: Whole, pairs: Sequence[RawSample], ratio: float) -> float | None:
    """Mean squared error of hidden patches at `ratio` of both modalities, in normalised pixels; None for a codebook."""
    if whole.model.discrete:
        return None
    total = count = 0.0
    for batch in whole.batches(whole.prepared(pairs, ratio, ratio)):
        total += float(whole.model(batch).image.sum())
        count += int(batch.has_image.sum())
    return total / max(1.0, count)


@torch.no_grad()
def fill_in(whole: Whole, pairs: Sequence[RawSample], ratio: float, view: str) -> Filled:
    """Hide `ratio` of the words and fill them in beside what `view` (see VIEWS) shows; the words are the same."""
    samples = _seen(whole.prepared(pairs, 0.0, ratio), view)
    right, words, nats = 0, 0, 0.0
    for batch in whole.batches(samples):
        true = batch.words[batch.text_targets.token]
        logits = whole.model.reconstruct(batch).text.float()
        right += int((logits.argmax(-1) == true).sum())
        nats += float(F.cross_entropy(logits, true, reduction="sum"))
        words += len(true)
    return Filled(right, words, nats / max(1, words))


def _seen(samples: Sequence[Sample], view: str) -> list[Sample]:
    if view == "with":
        return list(samples)
    if view == "without":
        return [replace(sample, patches=None, visible_patches=None) for sample in samples]
    return [replace(s, patches=o.patches) for s, o in zip(samples, [*samples[1:], samples[0]], strict=True)]


def _words_section(filled: dict[float, dict[str, Filled]]) -> Section:
    ratios = sorted(filled)
    rows = []
    for ratio in ratios:
        for view, one in filled[ratio].items():
            low, high = wilson(one.right, one.words) if one.words else (0.0, 1.0)
            rows.append(
                [f"{ratio:.0%}", VIEWS[view], percent(one.accuracy), f"{percent(max(low, 0.0))} to {percent(high)}",
                 f"{one.nats:.3f}", str(one.words)]
            )  # fmt: skip
    lines = [
        Series(name, [100 * r for r in ratios], [filled[r][view].accuracy for r in ratios], sparse=True)
        for view, name in (("with", "with its image"), ("without", "without"))
    ]
    return Section(
        "Hidden words, with and without the image",
        text="The same words are hidden each time. The first against the third says whether the image is read; "
        "the second is what the caption alone gives. A whole image is more than the encoder ever saw in training.",
        charts=[("Share of hidden words right", line_chart("Share of hidden words right", "% hidden", lines))],
        heads=["words hidden", "seen beside the words", "right", "95% interval", "nats a word", "hidden words"],
        rows=rows,
        note="Intervals are Wilson's and take words as independent; those of one caption are not quite.",
    )


@torch.no_grad()
def _sheets(whole: Whole, pairs: Sequence[RawSample], ratios: Sequence[float]) -> list[Section]:
    pictures = []
    augment = whole.experiment.data.augment
    for ratio in ratios:
        (batch,) = whole.batches(whole.prepared(pairs, ratio, ratio), len(pairs))
        filled = whole.model.reconstruct(batch)
        pixels = None if whole.model.discrete else to_bytes(filled.image, augment.mean, augment.std)
        cut = examples(batch, pixels, filled.text.argmax(-1), whole.experiment.model.patch, whole.piece, len(pairs))
        with TemporaryDirectory() as folder:
            reconstruction_sheet(cut, Path(folder) / "sheet.png")
            pictures.append((f"{ratio:.0%} of patches and words hidden", picture_url(_png(folder))))
    return [Section("Reconstructions", pictures=pictures)]


def _png(folder: str) -> bytes:
    return (Path(folder) / "sheet.png").read_bytes()
