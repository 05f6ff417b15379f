"""Dropout and drop path as functions of the sample, not of a generator's state.

Whether a value is dropped is a hash of (sample seed, place in the model, token, channel). So a recomputed block,
another number of ranks and another packing of the same samples all drop the same values, with no state to save.
"""

import torch
from torch import Tensor

# 64-bit finaliser of MurmurHash3, as signed integers: torch has no unsigned arithmetic.
_MIX_1 = -49064778989728563
_MIX_2 = -4265267296055464877
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio: spreads consecutive integers


def mix(x: Tensor) -> Tensor:
    """Scramble int64 values so that each output bit depends on each input bit."""
    x = (x ^ _shift(x, 33)) * _MIX_1
    x = (x ^ _shift(x, 33)) * _MIX_2
    return x ^ _shift(x, 33)


def uniform(x: Tensor) -> Tensor:
    """Map int64 values to float32 in [0, 1) by their hash."""
    return _shift(mix(x), 40).to(torch.float32) * 2.0**-24


def drop_path(x: Tensor, seed: Tensor, sample: Tensor, place: int, rate: float) -> Tensor:
    """Zero the residual branch of some samples and scale up the rest, as the reference's DropPath does.

    x: (n, dim); seed: (S,) int64; sample: (n,) int64. Each sample is kept with chance 1 - rate.
    """
    kept = uniform(seed + _spread(place)) >= rate
    scale = kept.to(x.dtype) / (1.0 - rate)
    return x * scale[sample][:, None]


def dropout(x: Tensor, token_seed: Tensor, place: int, rate: float, first_channel: int = 0) -> Tensor:
    """Zero single values and scale up the rest.

    x: (n, channels); token_seed: (n,) int64; `first_channel` is where this shard begins in the whole width.
    """
    channel = torch.arange(first_channel, first_channel + x.shape[1], device=x.device)
    noise = uniform(mix(token_seed + _spread(place))[:, None] + channel * _GOLDEN)
    return x * ((noise >= rate).to(x.dtype) / (1.0 - rate))


def _shift(x: Tensor, bits: int) -> Tensor:
    # A logical right shift: torch's >> on signed integers copies the sign bit.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _spread(place: int) -> int:
    # place * _GOLDEN, wrapped to 64 bits like the tensors' own arithmetic.
    return (place * _GOLDEN + 2**63) % 2**64 - 2**63
