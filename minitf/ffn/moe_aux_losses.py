"""Losses that keep a router balanced."""

from __future__ import annotations

from minitf.engine import Array, Tensor


def balance_loss(probabilities: Tensor, chosen: Array) -> Tensor:
    """L = E sum_e f_e P_e, a scalar: f_e the share of tokens that chose expert e, P_e its mean probability.

    probabilities: (n, E). chosen: boolean (n, E), a constant in the backward pass.
    """
    f = chosen.mean(axis=0).astype(probabilities.dtype)
    return probabilities.shape[-1] * (f * probabilities.mean(axis=0)).sum()
