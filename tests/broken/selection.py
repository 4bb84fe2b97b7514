"""Functions and a network that choose, and versions that choose wrongly where there is a tie."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor
from minitf.nn import Linear, Module, init


def attend_to(chosen: Array, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention to the keys (B, H, Nq, n) alone."""
    visible = np.zeros((*q.shape[:3], k.shape[2]), dtype=bool)
    np.put_along_axis(visible, chosen, True, axis=-1)
    return ops.softmax_attention(q, k, v, visible)


def right_top_keys(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each query sees its two best keys; among equals the first."""
    scores = (q @ k.mT).data / math.sqrt(q.shape[-1])
    return attend_to(np.argsort(-scores, axis=-1, kind="stable")[..., :2], q, k, v)


def last_among_equals(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Among equal keys it takes the last."""
    scores = (q @ k.mT).data / math.sqrt(q.shape[-1])
    order = np.argsort(-scores[..., ::-1], axis=-1, kind="stable")
    return attend_to(k.shape[2] - 1 - order[..., :2], q, k, v)


def all_equals(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sees every key that is as good as the second best, so more than two where there are ties."""
    scores = (q @ k.mT).data / math.sqrt(q.shape[-1])
    threshold = np.sort(scores, axis=-1)[..., -min(2, k.shape[2])][..., None]
    return ops.softmax_attention(q, k, v, scores >= threshold)


class RightExperts(Module):
    """Each token goes to the expert with the largest logit, among equals to the first."""

    def __init__(self, dim: int, *, experts: int = 4, seed: Any = 0, dtype: Any = "float32"):
        rng = init.generator(seed)
        self.router = Linear(dim, experts, False, rng, dtype=dtype)
        self.experts = [Linear(dim, dim, True, rng, dtype=dtype) for _ in range(experts)]
        for expert in self.experts:
            expert.bias.data = rng.standard_normal(dim).astype(dtype)

    def choose(self, logits: Tensor) -> Array:
        return np.argmax(logits.data, axis=-1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        p, chosen = ops.softmax(logits, axis=-1), self.choose(logits)
        y: Any = 0.0
        for i, expert in enumerate(self.experts):
            y = y + ops.where((chosen == i)[..., None], p[..., i : i + 1] * expert(x), 0.0)
        return y


class LastExpertAmongEquals(RightExperts):
    """A token of zeros goes to the last expert."""

    def choose(self, logits: Tensor) -> Array:
        return logits.shape[-1] - 1 - np.argmax(logits.data[..., ::-1], axis=-1)


class BalancesOverTheBatch(RightExperts):
    """Adds a bonus to the experts that other tokens did not take: what a token gets depends on the others."""

    def choose(self, logits: Tensor) -> Array:
        taken = np.argmax(logits.data, axis=-1)
        load = np.bincount(taken.ravel(), minlength=logits.shape[-1]) / taken.size
        return np.argmax(logits.data - load, axis=-1)
