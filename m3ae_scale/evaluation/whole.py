"""The whole trained autoencoder, decoder included, with pairs to look at it by; what the looking verbs share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from m3ae_scale.batch import Batch
from m3ae_scale.config import Experiment, KernelConfig, LossConfig, MaskConfig, load_experiment
from m3ae_scale.data.pack import pack
from m3ae_scale.data.prepare import Recipe, recipe_of
from m3ae_scale.data.sample import RawSample, Sample
from m3ae_scale.engine.checkpoint import read_weights
from m3ae_scale.errors import InputError
from m3ae_scale.evaluation.encode import prepared, shard_samples
from m3ae_scale.evaluation.record import Evaluated
from m3ae_scale.kernels.choose import choose
from m3ae_scale.model import M3AE, PlainLayers


@dataclass(frozen=True)
class Whole:
    """A trained model ready to be looked at."""

    model: M3AE
    experiment: Experiment
    recipe: Recipe
    device: torch.device
    evaluated: Evaluated

    def piece(self, word: int) -> str:
        """Return the word piece of an id."""
        return self.recipe.tokenizer.words_of([word])[0]

    def prepared(self, raws: Sequence[RawSample], image_ratio: float, text_ratio: float) -> list[Sample]:
        """Prepare pairs with so much hidden; the same pair at the same ratios hides the same tokens.

        Raises InputError for one that cannot be used.
        """
        recipe = replace(self.recipe, mask=MaskConfig(image_ratio=image_ratio, text_ratio=text_ratio))
        return [prepared(raw, recipe) for raw in raws]

    def batches(self, samples: Sequence[Sample], size: int = 32) -> Iterator[Batch]:
        """Pack samples, `size` at a time, onto the model's device."""
        for start in range(0, len(samples), size):
            yield pack(samples[start : start + size], LossConfig(), self.experiment.model.patch_dim).to(self.device)


def load_whole(path: str | Path, device: str = "cpu") -> Whole:
    """Load the autoencoder of a run folder (its newest good checkpoint) or of one checkpoint folder.

    Raises InputError where there is no run, no checkpoint, or a damaged one.
    """
    evaluated = Evaluated.at(path)
    experiment, _ = load_experiment(evaluated.run / "experiment.yaml")
    data = experiment.data.model_copy(update={"tokenizer": str(evaluated.run / "vocab.txt")})
    recipe = recipe_of(experiment.model_copy(update={"data": data}))
    kernels = choose(KernelConfig(), torch.device(device).type, torch.float32)
    augment = experiment.data.augment
    model = M3AE(experiment.model, recipe.tokenizer.size, augment.mean, augment.std, PlainLayers(), kernels)
    model.load_state_dict(read_weights(evaluated.checkpoint))
    # shard_samples calls its source "encode": nothing of a pair is dropped there.
    recipe = replace(recipe, validation={"encode": experiment.data.sources[0].model_copy(update=_NOTHING_DROPPED)})
    return Whole(model.to(device).eval(), experiment, recipe, torch.device(device), evaluated)


def read_pairs(whole: Whole, shards: str | None, limit: int) -> list[RawSample]:
    """Read the first `limit` pairs of `shards`, or of the run's own validation pairs, that have some text.

    Raises InputError where there are fewer than two.
    """
    pattern = shards or next((s.shards for s in whole.experiment.data.validation if s.kind == "paired"), None)
    if pattern is None:
        raise InputError("--shards: missing, and the run has no validation pairs; give tar shards of pairs")
    patterns = [pattern] if isinstance(pattern, str) else pattern
    every = (raw for one in patterns for raw in shard_samples(one, "paired", whole.evaluated.run))
    pairs = list(islice((raw for raw in every if raw.text and raw.text.strip()), limit))
    if len(pairs) < 2:
        raise InputError(f"--shards {pattern}: found {len(pairs)} pairs, expected at least 2")
    return pairs


_NOTHING_DROPPED = {"image_drop": 0.0, "text_drop": 0.0}
