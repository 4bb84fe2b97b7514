"""Sending tokens to the experts that were chosen for them: what mixtures of experts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor


def dispatch(
    x: Tensor, chosen: Array, gates: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """y_n = sum over slots s of gates_ns * experts[chosen_ns](x_n); each expert is called once.

    Args:
        x: (n, D). chosen: integers (n, k). gates: (n, k). experts: functions (m, D) -> (m, D').

    Returns:
        (n, D'). Slots are summed in their order, so that the sum does not depend on who else was chosen.
    """
    n, k = chosen.shape
    # All (token, slot) pairs, sorted by expert; pairs of one expert keep their order.
    order = np.argsort(chosen.reshape(-1), kind="stable")
    rows = x[order // k]
    ends = np.cumsum(np.bincount(chosen.reshape(-1), minlength=len(experts)))
    parts = [expert(rows[b - m : b]) for expert, b, m in zip(experts, ends, np.diff(ends, prepend=0)) if m]
    # Back in the order of the pairs: (n, k, D')
    y = ops.concat(parts, axis=0)[np.argsort(order, kind="stable")].reshape((n, k, -1))
    return (y * gates[..., None]).sum(axis=1)
