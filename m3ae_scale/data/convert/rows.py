"""What every source format yields and the writer takes: rows, one a sample to be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from m3ae_scale.data.sample import Kind


@dataclass(frozen=True)
class Row:
    """One sample to be. Its image is read when it is written, so that rows are cheap to pass over."""

    number: int  # in the source, from 0
    image: Callable[[], bytes] | None = None  # raises OSError when it cannot be read; None: the row names none
    image_name: str = ""  # for messages
    text: bytes | None = None
    label: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)  # JSON values; what else the source says


class Rows(Protocol):
    """The rows of one source, which can be gone over again and come in the same order each time."""

    kind: Kind  # what its samples will be
    identity: dict[str, Any]  # JSON values that tell this source apart: a folder holds the shards of one

    def __len__(self) -> int:
        """Return how many numbers `Row.number` takes."""

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows, their numbers rising."""
