"""Learning rates over time."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup: int, peak: float, floor: float = 0.0) -> float:
    """The learning rate of a step: a straight rise, then half a cosine down.

        step < warmup            peak (step + 1) / (warmup + 1)
        warmup <= step < steps   floor + (peak - floor) (1 + cos(pi (step - warmup) / (steps - warmup))) / 2
        step >= steps            floor

    Source: SGDR, Loshchilov and Hutter, arXiv:1608.03983, 2016, one period of equation 5.

    Args:
        step: the number of steps already taken. Step 0 has a rate above 0, step `warmup` the peak.
        steps: the length of the run.
        warmup: the length of the rise.
        peak, floor: the highest rate and the last one.

    Raises:
        ValueError: a negative length, or not 0 <= floor <= peak.
    """
    if steps < 0 or warmup < 0 or not 0.0 <= floor <= peak:
        raise ValueError(
            "warmup_cosine needs steps >= 0, warmup >= 0 and 0 <= floor <= peak, not "
            f"steps={steps}, warmup={warmup}, floor={floor}, peak={peak}"
        )
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    if step >= steps:
        return floor
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
