"""Sending tokens to the experts that were chosen for them: what mixtures of experts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minitf import ops
from minitf.engine import Array, Tensor


def dispatch(
    x: Tensor, chosen: Array, gates: Tensor, experts: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """y_n = sum over slots s of gates_ns * experts[chosen_ns](x_n); each expert is called once.

    Args:
        x: (n, D). chosen: integers (n, k). gates: (n, k). experts: functions (m, D) -> (m, D').

    Returns:
        (n, D'). A token's experts are summed in their order, so that its sum does not depend on other tokens.
    """
    n, k = chosen.shape
    # All (token, slot) pairs, sorted by expert; pairs of one expert keep their order.
    order, counts = ops.sort_by_expert(chosen, len(experts))
    tokens = order // k
    groups = zip(experts, ops.split(ops.embedding(tokens, x), counts.tolist()), strict=True)
    y = ops.concat([expert(rows) for expert, rows in groups if len(rows)])
    return ops.combine_rows(y, tokens, ops.take_along_axis(gates.reshape(-1), order, axis=0), n)
