"""A right kernel of softmax attention in plain NumPy, and kernels that are each wrong in one way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf.ops.kernels import Kernel


def probabilities(q: Any, k: Any, mask: Any, causal: bool) -> Any:
    scores = q @ np.swapaxes(k, -1, -2) / np.asarray(math.sqrt(q.shape[-1]), q.dtype)
    if causal:
        scores = np.where(
            np.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2], dtype=bool), scores, -np.inf
        )
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - np.where(top == -np.inf, 0.0, top).astype(q.dtype))
    z = e.sum(axis=-1, keepdims=True)
    return e / np.where(z == 0.0, 1.0, z).astype(q.dtype)


def forward(q: Any, k: Any, v: Any, mask: Any, causal: Any, *rest: Any) -> Any:
    p = probabilities(q, k, mask, causal)
    return p @ v, (q, k, v, p)


def back(residuals: Any, g: Any) -> Any:
    q, k, v, p = residuals
    dp = g @ np.swapaxes(v, -1, -2)
    ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) / np.asarray(math.sqrt(q.shape[-1]), q.dtype)
    dv = np.swapaxes(p, -1, -2) @ g
    return ds @ k, np.swapaxes(ds, -1, -2) @ q, dv, *[None] * 8


def supports(q: Any, k: Any, v: Any, mask: Any, causal: Any, *rest: Any) -> str | None:
    if any(option is not None for option in rest) or k.shape[1] != q.shape[1]:
        return "only plain attention"
    return None


right = Kernel(forward, back, supports)


def changed_forward(change: Any) -> Kernel:
    """The right kernel with its output, or what it reads, changed."""

    return Kernel(change, back, supports)


def _tail(*args: Any) -> Any:
    o, residuals = forward(*args)
    o[:, :, o.shape[2] // 4 * 4 :] = 0.0
    return o, residuals


def _unwritten(*args: Any) -> Any:
    o, residuals = forward(*args)
    y = np.empty_like(o)
    n = o.shape[2] - (o.shape[2] > 16)
    y[:, :, :n] = o[:, :, :n]
    return y, residuals


def _raw(q: Any, k: Any, v: Any, *rest: Any) -> Any:
    # As if every array were contiguous.
    q, k, v = (a.ravel(order="K").reshape(a.shape) for a in (q, k, v))
    return forward(q, k, v, *rest)


def _single(q: Any, k: Any, v: Any, *rest: Any) -> Any:
    o, (_, _, _, p) = forward(*(a.astype("float32") for a in (q, k, v)), *rest)
    return o.astype(q.dtype), (q, k, v, p.astype(q.dtype))


def _empty_rows(q: Any, k: Any, v: Any, mask: Any, *rest: Any) -> Any:
    o, residuals = forward(q, k, v, mask, *rest)
    if mask is not None:
        full = np.broadcast_to(np.any(mask, axis=-1, keepdims=True), (*o.shape[:3], 1))
        o = np.where(full, o, np.nan)
    return o, residuals


def _scales_in_place(q: Any, k: Any, v: Any, *rest: Any) -> Any:
    found = forward(q, k, v, *rest)
    v *= 1.0 + 1e-6
    return found


_last: list[Any] = []


def _shared(*args: Any) -> Any:
    o, residuals = forward(*args)
    _last[:] = [residuals]
    return o, None


_calls: list[None] = []


def _races(*args: Any) -> Any:
    o, residuals = forward(*args)
    _calls.append(None)
    return o * (1.0 + len(_calls) % 3 * 1e-15), residuals


drops_the_tail_tile = changed_forward(_tail)
leaves_a_row_unwritten = changed_forward(_unwritten)
assumes_contiguous_arrays = changed_forward(_raw)
accumulates_in_float32 = changed_forward(_single)
nan_on_empty_rows = changed_forward(_empty_rows)
changes_its_arguments = changed_forward(_scales_in_place)
shares_residuals = Kernel(_shared, lambda residuals, g: back(_last[0], g), supports)
gradient_slightly_off = Kernel(
    forward, lambda residuals, g: tuple(d if d is None else d * 1.001 for d in back(residuals, g)), supports
)
forgets_one_gradient = Kernel(
    forward, lambda residuals, g: (back(residuals, g)[0], None, *back(residuals, g)[2:]), supports
)
differs_between_runs = changed_forward(_races)
ignores_the_mask = changed_forward(lambda q, k, v, mask, *rest: forward(q, k, v, None, *rest))
