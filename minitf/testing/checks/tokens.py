"""What passes between tokens: causality, order, shifts, attention maps."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minitf.engine import Array
from minitf.nn import Case

from ..subject import Subject
from .core import (
    MIXERS,
    ROUNDING,
    can_be_rebuilt,
    changed,
    check,
    close,
    difference,
    gradients_of,
    run,
    takes_any_length,
    trainable,
    window,
)


def splits(case: Case) -> list[int]:
    """Where to part the tokens in an early and a late half: the ends, the middle, tile edges, anywhere."""
    chosen = {1, case.t // 2, case.t - 1, 16, 32, 64, 128, case.seed % case.t}
    return sorted(t for t in chosen if 0 < t < case.t)


@check(claim="causal", share=0.7)
def causal(subject: Subject, case: Case) -> None:
    """No output depends on a later token, with a mask or without: not its value, and not its gradient."""
    # A Fourier transform mixes all tokens before it separates them again, up to rounding.
    limit = ROUNDING if "causal_to_rounding" in subject.claims else 0.0
    layer, x = subject.layer(case), subject.inputs(case)
    calls: list[tuple[str, dict[str, Any]]] = [("", {})]
    if subject.masks and subject.axes == 1:
        keys = "key_masks" in subject.claims
        mask = case.rng().random((case.b, 1, 1 if keys else case.t, case.t)) < 0.6
        calls.append((" under a mask", {"mask": mask}))
    for words, options in calls:
        inputs = trainable(x)
        recorded = run(layer, inputs, **options)
        y = recorded.data
        for t in splits(case)[:: 2 if words else 1]:
            # Other values, and at one place very large ones, which a hidden -1e4 would let through.
            factor = 1e3 if t == case.t - 1 and limit == 0.0 else 1.0

            def late(v: Array, t: int = t, factor: float = factor) -> Array:
                v = v.copy()
                window(subject, v, t, case.t)[...] = factor * (9.0 - window(subject, v, t, case.t))
                return v

            moved = run(layer, changed(subject, x, late), **options).data
            error = difference(window(subject, moved, 0, t), window(subject, y, 0, t))
            assert error <= limit, (
                f"outputs before token {t} moved by {error:.2g} when tokens from {t} on changed{words}"
            )
            found = gradients_of(window(subject, recorded, 0, t), inputs, again=True)
            for g in found[: subject.sequences]:
                size = np.max(np.abs(window(subject, g, t, case.t)))
                assert size <= limit, (
                    f"gradients of outputs before token {t} reach later tokens ({size:.2g}){words}"
                )


@check(kinds=MIXERS, claim="causal", needs=takes_any_length, share=0.5)
def prefix_invariant(subject: Subject, case: Case) -> None:
    """The first tokens alone give what they give with others behind them: how many come does not matter."""
    layer, x = subject.layer(case), subject.inputs(case)
    y = run(layer, x).data
    for t in splits(case):
        short = (*(window(subject, v, 0, t) for v in x[: subject.sequences]), *x[subject.sequences :])
        close(run(layer, short), window(subject, y, 0, t), f"{t} tokens alone and with others behind differ")


def shuffled(subject: Subject, case: Case, a: Array) -> Array:
    """The tokens of an input or output in another order, over the whole grid."""
    start, stop = subject.axis, subject.axis + subject.axes
    flat = a.reshape(*a.shape[:start], -1, *a.shape[stop:])
    order = case.rng().permutation(flat.shape[start])
    return np.take(flat, order, axis=start).reshape(a.shape)


def without_causal(subject: Subject) -> str:
    return can_be_rebuilt(subject) if "permutation_equivariant_without_causal" in subject.claims else ""


@check(kinds=MIXERS, claim="permutation_equivariant", needs=without_causal)
def permutation_equivariant(subject: Subject, case: Case) -> None:
    """Tokens in another order give the same outputs in that order: there is no notion of place."""
    only_then = "permutation_equivariant_without_causal" in subject.claims
    options: dict[str, Any] = {"causal": False} if only_then else {}
    layer, x = subject.layer(case, **options), subject.inputs(case)
    moved = run(layer, changed(subject, x, lambda v: shuffled(subject, case, v)))
    close(moved, shuffled(subject, case, run(layer, x).data), "permuted inputs and permuted outputs differ")


@check(kinds=("token_reducer", "operation"), claim="permutation_invariant")
def permutation_invariant(subject: Subject, case: Case) -> None:
    """Tokens in another order give the same output: it sees a set."""
    layer, x = subject.layer(case), subject.inputs(case)
    moved = run(layer, changed(subject, x, lambda v: shuffled(subject, case, v)))
    close(moved, run(layer, x), "outputs of permuted tokens differ")


@check(kinds=("token_mixer", "block"), claim="translation_equivariant")
def translation_equivariant(subject: Subject, case: Case) -> None:
    """Tokens shifted around a circle give outputs shifted as far, along every axis of the grid."""
    layer, x = subject.layer(case), subject.inputs(case)
    y = run(layer, x).data
    for axis in range(subject.axis, subject.axis + subject.axes):
        by = 1 + case.seed % y.shape[axis]
        moved = run(layer, changed(subject, x, partial(np.roll, shift=by, axis=axis)))
        close(moved, np.roll(y, by, axis), f"after a shift by {by} along axis {axis} the outputs differ")


@check(kinds=("token_mixer",), claim="row_stochastic")
def row_stochastic(subject: Subject, case: Case) -> None:
    """The attention map is one: weights of at least 0 that sum to 1 for each query, none on a later token."""
    inputs = subject.inputs(case)
    n = int(np.prod(inputs[0].shape[1:-1]))
    p = subject.layer(case).weights(*inputs).data
    assert p.shape[-2:] == (n, n), f"weights() gave {p.shape} for {n} tokens"
    assert np.all(p >= 0.0), f"there are weights below 0, down to {np.min(p):.2g}"
    close(p.sum(axis=-1), np.ones(p.shape[:-1]), "rows of weights() and 1 differ")
    if "causal" in subject.claims and subject.axes == 1:
        size = np.max(np.abs(np.triu(p, 1)))
        assert size == 0.0, f"weights() looks at later tokens, with up to {size:.2g}"
