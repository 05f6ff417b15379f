"""A sample on its way: RawSample as it lies in a shard, Sample as it goes into a Batch, BadSample when it cannot."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["paired", "image", "text"]


@dataclass(frozen=True)
class RawSample:
    """The undecoded members of one sample of a shard; a member that the shard lacks is None."""

    source: str
    shard: str
    key: str
    kind: Kind  # what the source promises
    image: bytes | None
    text: bytes | None
    meta: bytes | None  # JSON

    @property
    def name(self) -> str:
        """The name that tells this sample apart from every other: it seeds masks and stands in logs."""
        return f"{self.source}/{self.shard}/{self.key}"


@dataclass(frozen=True)
class Sample:
    """One decoded, cropped, tokenised and masked sample."""

    name: str
    patches: NDArray[np.uint8] | NDArray[np.float32] | None  # (patches, patch_dim); float32: already normalised
    words: NDArray[np.int32] | None  # (words,)
    visible_patches: NDArray[np.bool_] | None  # (patches,) True: the encoder sees it
    visible_words: NDArray[np.bool_] | None  # (words,) True: the encoder sees it
    seed: int  # int64; drop path and dropout are functions of it
    word_positions: NDArray[np.int64] | None = None  # (words,) place of each word in its text; None: 0, 1, 2, ...


class BadSample(Exception):
    """A sample that cannot be used; its text is the reason, for the quarantine."""
