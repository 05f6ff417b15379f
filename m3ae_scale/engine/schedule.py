"""The learning rate: linear warm-up, then a cosine (optax.warmup_cosine_decay_schedule, as the reference uses it)."""

import math


def warmup_cosine(step: int, peak: float, warmup: int, total: int, final: float, initial: float = 0.0) -> float:
    """Return the rate for step `step` (0, 1, ...): `initial` up to `peak` in `warmup` steps, `final` at `total`."""
    if step < warmup:
        return initial + (peak - initial) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * progress))
