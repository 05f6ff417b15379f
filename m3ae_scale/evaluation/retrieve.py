"""Finding the caption of an image, and the image of a caption, by features encoded apart."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m3ae_scale.data.sample import RawSample
from m3ae_scale.evaluation.encode import load_encoder
from m3ae_scale.evaluation.record import Outcome, write_outcome
from m3ae_scale.evaluation.scores import wilson
from m3ae_scale.evaluation.tables import percent
from m3ae_scale.evaluation.whole import load_whole, read_pairs
from m3ae_scale.reports.page import Section

AT = (1, 5, 10)
DIRECTIONS = {"image_to_text": "the caption of an image", "text_to_image": "the image of a caption"}


def retrieve(path: str, shards: str | None, limit: int, pool: str, device: str) -> Path:
    """Score retrieval among the first `limit` pairs, features as they are and centred by modality; returns the page."""
    whole = load_whole(path, device)
    pairs = read_pairs(whole, shards, limit)
    encoder = load_encoder(whole.evaluated.checkpoint, device)
    image, text = (
        getattr(encoder.encode_samples(_only(pairs, kind)), pool).to(torch.float64) for kind in ("image", "text")
    )
    same = same_caption([raw.text or b"" for raw in pairs])
    metrics: dict[str, float] = {}
    rows = []
    for form, (a, b) in {"as they are": (image, text), "centred": (centred(image), centred(text))}.items():
        similarity = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
        for direction, scores in (("image_to_text", similarity), ("text_to_image", similarity.T)):
            ranks = ranks_of(scores, same)
            found = {at: int((ranks <= at).sum()) for at in AT}
            prefix = direction if form == "centred" else f"{direction}_uncentred"
            metrics |= {f"{prefix}_r{at}": count / len(pairs) for at, count in found.items()}
            metrics[f"{prefix}_median_rank"] = float(ranks.double().median())
            rows.append([DIRECTIONS[direction], form, *(_share(count, len(pairs)) for count in found.values()),
                         f"{int(ranks.double().median())}"])  # fmt: skip
    chance = {at: chance_of(same, at) for at in AT}
    rows.append(["either", "chance", *(percent(share) for share in chance.values()), f"{len(pairs) // 2}"])
    outcome = Outcome(
        verb="retrieve",
        title=f"Retrieval among {len(pairs)} pairs",
        lead="Image and caption are encoded apart, and compared by the cosine of their features. M3AE was not trained "
        "for this: nothing in its loss brings the two together.",
        settings={"shards": shards or "the run's validation pairs", "pairs": len(pairs), "pool": pool},
        metrics=metrics | {f"chance_r{at}": share for at, share in chance.items()},
        tiles=[
            (f"{what}, R@5", percent(metrics[f"{direction}_r5"]), f"chance {percent(chance[5])}")
            for direction, what in DIRECTIONS.items()
        ],
        sections=[
            Section(
                "Recall",
                heads=["looked for", "features", *(f"R@{at}" for at in AT), "median rank"],
                rows=rows,
                note="Centred: each modality less its mean over these pairs, which removes what tells images from "
                "texts whatever they show. A pair with the same caption counts as found; ties count against the model. "
                "Brackets: Wilson's 95% intervals.",
            )
        ],
    )  # fmt: skip
    return write_outcome(outcome, whole.evaluated, whole.evaluated.folder("retrieve", pool))


def ranks_of(similarity: Tensor, same: Tensor) -> Tensor:
    """Return the rank, from 1, of the best right answer to each query; a wrong one that is as similar goes before it.

    similarity: (n, n), queries in rows; same: (n, n) bool, True: a right answer -> (n,) int64
    """
    best = similarity.masked_fill(~same, -torch.inf).amax(1, keepdim=True)
    return 1 + ((similarity >= best) & ~same).sum(1)


def same_caption(texts: Sequence[bytes]) -> Tensor:
    """Mark the pairs that have the same text: (n, n) bool."""
    number: dict[bytes, int] = {}
    ids = torch.tensor([number.setdefault(text.strip(), len(number)) for text in texts])
    return ids[:, None] == ids[None]


def centred(features: Tensor) -> Tensor:
    """Take the mean of all rows from each. features: (n, dim)."""
    return features - features.mean(0)


def chance_of(same: Tensor, at: int) -> float:
    """Return the share of queries that an order drawn at random answers within its first `at`, exactly."""
    n = len(same)
    wrong = (~same).sum(1).double()
    missed = torch.ones(n, dtype=torch.float64)
    for drawn in range(min(at, n)):
        missed *= ((wrong - drawn) / (n - drawn)).clamp(min=0)
    return float((1 - missed).mean())


def _only(pairs: Sequence[RawSample], kind: Any) -> list[RawSample]:
    return [
        replace(raw, kind=kind, text=None if kind == "image" else raw.text, image=None if kind == "text" else raw.image)
        for raw in pairs
    ]


def _share(count: int, total: int) -> str:
    low, high = wilson(count, total)
    return f"{percent(count / total)} [{percent(max(low, 0.0))}, {percent(high)}]"
