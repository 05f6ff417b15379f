"""Named random streams: what is drawn for a sample depends on its name, not on where or when it is drawn."""

import hashlib

import numpy as np


def stream(*identity: str | int) -> np.random.Generator:
    """Return the random stream that `identity` names, such as (seed, epoch, sample name, "crop").

    The key of the counter-based generator (Philox) is a 128-bit hash of the identity, so that two streams share
    nothing, and neither rank nor worker nor the order of drawing has a say.
    """
    return np.random.Generator(np.random.Philox(key=int.from_bytes(_digest(identity), "little")))


def stream_seed(*identity: str | int) -> int:
    """Return the int64 seed, not negative, that `identity` names."""
    return int.from_bytes(_digest(identity)[:8], "little") >> 1


def _digest(identity: tuple[str | int, ...]) -> bytes:
    # repr keeps ("a", "b") and ("ab",) apart, and 1 and "1".
    return hashlib.blake2b(repr(identity).encode(), digest_size=16).digest()
