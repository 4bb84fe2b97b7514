"""Sampling: draw the next token from the model's logits, one token after the other.

    p = softmax(z / T)                  T = 0: the largest logit, always
    top-k: only the k most probable     p = 0 elsewhere, and rescaled
    top-p: of those, the smallest set of the most probable whose p sums to at least top_p

    z, p  (V,) or (B, V)   logits and probabilities

Ties: the lower id counts as the more probable.
Source: top-k, Fan et al., arXiv:1805.04833, 2018; top-p, The Curious Case of Neural Text Degeneration,
Holtzman et al., arXiv:1904.09751, 2019. With both, top-k acts first.
Numerics: float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np

from minitf.engine import Array, Tensor, to_device


def check_settings(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise ValueError for a setting that means nothing."""
    if not 0.0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (the most probable, always) or positive, not {temperature}")
    if top_k is not None and (not isinstance(top_k, Integral) or isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"top_k must be an integer of at least 1, or None for all tokens, not {top_k}")
    if top_p is not None and not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p must be in (0, 1], or None for all tokens, not {top_p}")


def probabilities(
    logits: Any, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Array:
    """p as defined above, float64, in the shape of the logits (V,) or (B, V). -inf means never.

    Raises:
        ValueError: a setting out of range, or logits without a largest finite value (NaN, +inf, or all -inf).
    """
    check_settings(temperature, top_k, top_p)
    z = np.array(to_device(logits.data if isinstance(logits, Tensor) else logits, "cpu"), dtype=np.float64)
    top = z.max(axis=-1, keepdims=True)
    if not np.isfinite(top).all():
        raise ValueError("the logits hold NaN or infinity: the model's weights or inputs are broken")
    if temperature == 0.0:
        return np.where(np.arange(z.shape[-1]) == np.argmax(z, axis=-1)[..., None], 1.0, 0.0)
    # A tiny T may send the others to -inf, which is what it means.
    with np.errstate(over="ignore"):
        p = np.exp((z - top) / temperature)
    p /= p.sum(axis=-1, keepdims=True)
    if top_k is None and (top_p is None or top_p == 1.0):
        return p
    # The most probable first; a stable sort leaves equal ones in the order of their ids.
    order = np.argsort(-z, axis=-1, kind="stable")
    ranked = np.take_along_axis(p, order, axis=-1)
    if top_k is not None:
        ranked[..., top_k:] = 0.0
        ranked /= ranked.sum(axis=-1, keepdims=True)
    if top_p is not None and top_p < 1.0:
        # A token stays if those before it do not reach top_p yet.
        before = np.zeros_like(ranked)
        np.cumsum(ranked[..., :-1], axis=-1, out=before[..., 1:])
        ranked[before >= top_p] = 0.0
        ranked /= ranked.sum(axis=-1, keepdims=True)
    np.put_along_axis(p, order, ranked, axis=-1)
    return p


def draw(p: Array, rng: np.random.Generator) -> Any:
    """Ids (...) from probabilities (..., V), with one number from the generator for each row."""
    # The first id whose cumulated probability exceeds u. A number below 1 times the total is below the
    # total, in floating point too, so there is such an id; and its own probability is not zero.
    total = np.cumsum(p, axis=-1)
    u = np.asarray(rng.random(p.shape[:-1]))[..., None] * total[..., -1:]
    return np.sum(total <= u, axis=-1)


def sample_logits(
    logits: Any,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: np.random.Generator | None = None,
) -> Any:
    """Draw a token: an integer from logits (V,), an int64 array (B,) from logits (B, V).

    Args:
        logits: array or tensor. temperature, top_k, top_p: as defined above.
        rng: one number is drawn from it for each row. Temperature 0 needs none.

    Raises:
        ValueError: a setting out of range, broken logits, or no generator.
    """
    p = probabilities(logits, temperature, top_k, top_p)
    if temperature == 0.0:
        ids = np.argmax(p, axis=-1)
    elif rng is None:
        raise ValueError("sampling needs a generator: rng=np.random.default_rng(seed)")
    else:
        ids = draw(p, rng)
    return int(ids) if ids.ndim == 0 else ids.astype(np.int64)


def generate(
    model: Any,
    prompt_ids: Any,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | np.random.Generator = 0,
) -> Iterator[int]:
    """Continue a prompt, one token at a time, through the model's cache.

    When the sequence has filled the model's context, the last half of it is read again as a fresh start. Of a
    prompt longer than the context, the end is used.

    Args:
        model: a LanguageModel. prompt_ids: integers (n,), at least one. tokens: how many to make.
        temperature, top_k, top_p: as in `sample_logits`. seed: or a generator.

    Returns:
        An iterator over the new ids, each made when it is asked for.

    Raises:
        ValueError: an empty prompt, a negative number of tokens, a setting out of range, or ids outside the
            vocabulary.
    """
    check_settings(temperature, top_k, top_p)
    ids = np.asarray(prompt_ids)
    if ids.ndim != 1 or not ids.size:
        raise ValueError(f"the prompt must be integers (n,), at least one, not of shape {ids.shape}")
    if not isinstance(tokens, Integral) or tokens < 0:
        raise ValueError(f"tokens must be an integer of at least 0, not {tokens!r}")
    rng = seed if isinstance(seed, np.random.Generator) else np.random.default_rng(seed)
    context = model.config.context
    read = ids[-context:].tolist()
    # Read before the first token is asked for, so that a wrong prompt is an error of this call.
    logits, state = model.prefill(np.array([read]), model.start(1))

    def run(logits: Any, state: Any, read: list[int]) -> Iterator[int]:
        for made in range(1, tokens + 1):
            token = sample_logits(logits[0], temperature, top_k, top_p, rng)
            yield token
            if made == tokens:
                return
            read.append(token)
            if state.length == context:
                read = read[-max(context // 2, 1) :]
                logits, state = model.prefill(np.array([read]), model.start(1))
                logits = logits[:, -1]
            else:
                logits, state = model.step(np.array([token]), state)

    return run(logits[:, -1], state, read)
