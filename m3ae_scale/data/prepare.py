"""Turns a raw sample into one that can be packed: decoded, cropped, tokenised, masked. Pure: no state, no order.

What becomes of an imperfect sample:

| the sample                                         | outcome                                             |
|----------------------------------------------------|-----------------------------------------------------|
| a pair without its image or without its caption    | bad                                                 |
| a pair whose caption is blank or has no word piece | used as an image alone (in m3ae_public: all padding) |
| a text source whose text is missing or blank       | bad                                                 |
| text that is not UTF-8                             | bad                                                 |
| an image source: its texts; a text source: images  | not looked at                                       |
| a pair of which one half is dropped this epoch     | the dropped half must exist, and is not decoded     |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from m3ae_scale.config.schema import AugmentConfig, Experiment, MaskConfig, SourceConfig
from m3ae_scale.data.augment import extract_patches, square_view
from m3ae_scale.data.mask import Mask, visible_mask
from m3ae_scale.data.rng import stream, stream_seed
from m3ae_scale.data.sample import BadSample, RawSample, Sample
from m3ae_scale.data.tokenizer import Tokenizer, load_tokenizer

Identity = tuple[int, int, str]  # (seed, epoch, sample name)


@dataclass(frozen=True)
class Recipe:
    """What preparing a sample needs of an experiment; it can be pickled into a loader worker."""

    seed: int
    image_size: int  # pixels, square
    patch: int  # pixels, square
    text_length: int  # word pieces kept of a caption
    unpaired_text_length: int  # word pieces kept of a text without image
    mask: MaskConfig
    augment: AugmentConfig
    tokenizer: Tokenizer
    sources: Mapping[str, SourceConfig]
    validation: Mapping[str, SourceConfig]


def recipe_of(experiment: Experiment) -> Recipe:
    """Gather the recipe of `experiment`. Raises InputError for a vocabulary that cannot be used."""
    model, data = experiment.model, experiment.data
    return Recipe(
        seed=experiment.seed,
        image_size=model.image_size,
        patch=model.patch,
        text_length=model.text_length,
        unpaired_text_length=model.unpaired_text_length,
        mask=experiment.mask,
        augment=data.augment,
        tokenizer=load_tokenizer(data.tokenizer),
        sources={source.name: source for source in data.sources},
        validation={source.name: source for source in data.validation},
    )


def prepare(raw: RawSample, recipe: Recipe, epoch: int, train: bool, global_step: int | None = None) -> Sample:
    """Prepare one sample; crop, flip, mask and drop are functions of (seed, epoch, sample name) alone.

    epoch: of the sample's source; validation passes the same one each time, to see the same masks.
    train: True draws crop and flip, False takes the centre crop.
    global_step: seeds the batch's one mask under the mask rule "reference"; not used otherwise.
    Raises BadSample, its text the reason.
    """
    identity = (recipe.seed, epoch, raw.name)
    image, text = promised(raw)
    dropped = _dropped(raw, recipe, train, identity)
    words = None
    if text is not None and dropped != "text":
        paired = image is not None and dropped != "image"
        words = _encode(text, recipe.tokenizer, recipe.text_length if paired else recipe.unpaired_text_length)
        if words is None and image is None:
            raise BadSample("the text is blank, or holds nothing that makes a word piece")
        if words is not None and not paired:
            image = None  # with a blank caption it would leave nothing: then the image stays
    patches = None
    if image is not None:
        rng = stream(*identity, "crop") if train else None
        patches = extract_patches(square_view(image, recipe.image_size, recipe.augment, rng), recipe.patch)
    seen_patches = None if patches is None else _image_mask(len(patches), recipe, identity, global_step)
    seen_words = None if words is None else _text_mask(len(words), image is not None, recipe, identity, global_step)
    return Sample(
        name=raw.name,
        patches=patches,
        words=words,
        visible_patches=seen_patches,
        visible_words=seen_words,
        seed=stream_seed(*identity, "seed"),
    )


def promised(raw: RawSample) -> tuple[bytes | None, bytes | None]:
    """Return the image and the text that the kind of the source promises. Raises BadSample when one is not there."""
    image = raw.image if raw.kind != "text" else None
    text = raw.text if raw.kind != "image" else None
    if raw.kind != "text" and image is None:
        raise BadSample(f"no image beside {_members(raw)}")
    if raw.kind != "image" and text is None:
        raise BadSample(f"no text beside {_members(raw)}")
    return image, text


def read_text(text: bytes) -> str:
    """Decode a text member. Raises BadSample for one that is not UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise BadSample(f"text that is not UTF-8: byte {text[error.start]:#04x} at {error.start}") from None


def _members(raw: RawSample) -> str:
    there = [
        name for name, member in (("image", raw.image), ("text", raw.text), ("json", raw.meta)) if member is not None
    ]
    return "its " + " and ".join(there) if there else "it: no member has a known ending"


def _dropped(raw: RawSample, recipe: Recipe, train: bool, identity: Identity) -> Literal["image", "text"] | None:
    """Which half of a pair is left out this epoch."""
    if raw.kind != "paired":
        return None
    source = (recipe.sources if train else recipe.validation)[raw.source]
    draw = stream(*identity, "drop").random()
    if draw < source.image_drop:
        return "image"
    return "text" if draw < source.image_drop + source.text_drop else None


def _encode(text: bytes, tokenizer: Tokenizer, limit: int) -> NDArray[np.int32] | None:
    words = tokenizer.encode(read_text(text), limit)
    return words if len(words) else None


def _image_mask(patches: int, recipe: Recipe, identity: Identity, global_step: int | None) -> Mask:
    ratio = recipe.mask.image_ratio
    if recipe.mask.rule == "per_sample":
        return visible_mask(patches, ratio, stream(*identity, "image mask"))
    return visible_mask(patches, ratio, _batch_stream(recipe, global_step, "image mask"))


def _text_mask(words: int, paired: bool, recipe: Recipe, identity: Identity, global_step: int | None) -> Mask:
    ratio = recipe.mask.text_ratio
    if recipe.mask.rule == "per_sample":
        return visible_mask(words, ratio, stream(*identity, "text mask"))
    # The reference masks positions, padding counted, of captions and of unpaired texts apart.
    length, purpose = (
        (recipe.text_length, "text mask") if paired else (recipe.unpaired_text_length, "unpaired text mask")
    )
    return visible_mask(length, ratio, _batch_stream(recipe, global_step, purpose))[:words]


def _batch_stream(recipe: Recipe, global_step: int | None, purpose: str) -> np.random.Generator:
    if global_step is None:
        raise ValueError('the mask rule "reference" draws one mask a step: prepare needs global_step')
    return stream(recipe.seed, global_step, purpose)
