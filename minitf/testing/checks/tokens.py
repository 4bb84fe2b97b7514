"""What passes between tokens: causality, masks, padding, order, streaming, chunks."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor
from minitf.nn import Case

from ..strategies import hiding_row
from ..subject import Subject
from .core import (
    LAYERS,
    ROUNDING,
    changed,
    check,
    difference,
    gradients_of,
    hides_pairs,
    run,
    takes_mask,
    trainable,
    window,
)


@check(claim="causal")
def causal(subject: Subject, case: Case) -> None:
    """No output depends on a later token: not its value, and not its gradient."""
    # A Fourier transform mixes all tokens before it separates them again, up to rounding.
    limit = ROUNDING if "causal_to_rounding" in subject.claims else 0.0
    layer, x = subject.layer(case), subject.inputs(case)
    y = run(layer, x).data
    for t in {1, case.t // 2, case.t - 1} - {0, case.t}:

        def late(v: Array, t: int = t) -> Array:
            v = v.copy()
            window(subject, v, t, case.t)[...] = 9.0 - window(subject, v, t, case.t)
            return v

        early = window(subject, y, 0, t)
        error = difference(window(subject, run(layer, changed(subject, x, late)).data, 0, t), early)
        assert error <= limit, (
            f"outputs before token {t} moved by {error:.2g} when tokens from {t} on changed"
        )
        inputs = trainable(x)
        found = gradients_of(window(subject, run(layer, inputs), 0, t), inputs)
        for g in found[: subject.sequences]:
            size = np.max(np.abs(window(subject, g, t, case.t)))
            assert size <= limit, f"gradients of outputs before token {t} reach later tokens ({size:.2g})"


@check(kinds=("token_mixer", "attention_function"), needs=hides_pairs)
def mask_rule(subject: Subject, case: Case) -> None:
    """A query that sees nothing gives zeros and passes zero gradients, and others stay finite."""
    mask, row = hiding_row(case)
    kept = mask.copy()
    inputs = trainable(subject.inputs(case))
    y = run(subject.layer(case), inputs, mask=mask)
    assert np.array_equal(mask, kept), "the mask was changed"
    assert np.all(np.isfinite(y.data)), "a mask with an empty row gives values that are not finite"
    empty = window(subject, y, row, row + 1)
    size = np.max(np.abs(empty.data))
    assert size == 0.0, f"query {row} sees nothing and should give zeros, not up to {size:.2g}"
    for g in gradients_of(empty, inputs):
        assert np.all(g == 0.0), f"the gradient of query {row}, which sees nothing, is not zero"
    inputs = trainable(inputs)
    for g in gradients_of(run(subject.layer(case), inputs, mask=mask), inputs):
        assert np.all(np.isfinite(g)), "a mask with an empty row gives gradients that are not finite"


@check(kinds=("token_mixer", "block", "attention_function"), needs=takes_mask)
def padding_invariant(subject: Subject, case: Case) -> None:
    """Hidden tokens change nothing: neither that they are there, nor what they hold."""
    more = 1 + case.seed % 3
    layer = subject.layer(case)
    if "fixed_grid" not in subject.claims:
        x = subject.inputs(case, more=more)
        mask = (np.arange(case.t + more) < case.t)[None, None, None, :]
        padded = window(subject, run(layer, x, mask=mask), 0, case.t)
        short = (*(window(subject, v, 0, case.t) for v in x[: subject.sequences]), *x[subject.sequences :])
        error = difference(padded, run(layer, short))
        assert error <= ROUNDING, f"with {more} hidden tokens at the end the others differ by {error:.2g}"
    # Anywhere else they still take a place, but what they hold must not matter.
    hidden = case.rng().random((case.b, case.t)) < 0.5
    x = subject.inputs(case)
    at = hidden[:, :, None] if subject.axis == 1 else hidden[:, None, :, None]
    other = changed(subject, x, lambda v: np.where(at, 9.0 - v, v))
    mask = ~hidden[:, None, None, :]
    error = difference(*(np.where(at, 0.0, run(layer, v, mask=mask).data) for v in (other, x)))
    assert error <= ROUNDING, f"what hidden tokens hold changes the others by {error:.2g}"


def shuffled(subject: Subject, case: Case, a: Array) -> Array:
    """The tokens of an input or output in another order, over the whole grid."""
    start, stop = subject.axis, subject.axis + subject.axes
    flat = a.reshape(*a.shape[:start], -1, *a.shape[stop:])
    order = case.rng().permutation(flat.shape[start])
    return np.take(flat, order, axis=start).reshape(a.shape)


@check(kinds=("token_mixer", "block", "attention_function"), claim="permutation_equivariant")
def permutation_equivariant(subject: Subject, case: Case) -> None:
    """Tokens in another order give the same outputs in that order: there is no notion of place."""
    without_causal = "permutation_equivariant_without_causal" in subject.claims
    options: dict[str, Any] = {"causal": False} if without_causal else {}
    layer, x = subject.layer(case, **options), subject.inputs(case)
    moved = run(layer, changed(subject, x, lambda v: shuffled(subject, case, v)))
    error = difference(moved, shuffled(subject, case, run(layer, x).data))
    assert error <= ROUNDING, f"permuted inputs and permuted outputs differ by {error:.2g}"


@check(kinds=("token_reducer", "operation"), claim="permutation_invariant")
def permutation_invariant(subject: Subject, case: Case) -> None:
    """Tokens in another order give the same output: it sees a set."""
    layer, x = subject.layer(case), subject.inputs(case)
    moved = run(layer, changed(subject, x, lambda v: shuffled(subject, case, v)))
    error = difference(moved, run(layer, x))
    assert error <= ROUNDING, f"outputs of permuted tokens differ by {error:.2g}"


@check(kinds=("token_mixer", "block"), claim="translation_equivariant")
def translation_equivariant(subject: Subject, case: Case) -> None:
    """Tokens shifted around a circle give outputs shifted as far, along every axis of the grid."""
    layer, x = subject.layer(case), subject.inputs(case)
    y = run(layer, x).data
    for axis in range(subject.axis, subject.axis + subject.axes):
        by = 1 + case.seed % y.shape[axis]
        moved = run(layer, changed(subject, x, partial(np.roll, shift=by, axis=axis)))
        error = difference(moved, np.roll(y, by, axis))
        assert error <= ROUNDING, f"a shift by {by} along axis {axis} changes the outputs by {error:.2g}"


@check(kinds=("token_mixer", "block"), claim="streams")
def streams(subject: Subject, case: Case) -> None:
    """Token by token, and prefilled then token by token, equals the whole; a state may be continued twice."""
    layer, x = subject.layer(case), subject.inputs(case)[0]
    whole = run(layer, (x,)).data
    for split in {0, case.seed % (case.t + 1), case.t}:
        rows, state = [], layer.start(batch=case.b)
        if split and not hasattr(layer, "prefill"):
            continue
        if split:
            y, state = layer.prefill(x[:, :split], state)
            rows = [y[:, i] for i in range(split)]
        for i in range(split, case.t):
            # Another continuation of the same state first: it must leave no trace.
            layer.step(x[:, i] * -3.0, state)
            y, state = layer.step(x[:, i], state)
            rows.append(y)
        error = difference(ops.stack(rows, axis=1), whole)
        assert error <= ROUNDING, (
            f"{split} tokens prefilled and {case.t - split} steps, each state continued twice, differ from "
            f"the whole by {error:.2g}"
        )


@check(kinds=LAYERS, claim="chunked", share=0.3)
def every_chunk_size(subject: Subject, case: Case) -> None:
    """Cut into chunks of any size, the sequence gives the same outputs and gradients."""
    expected: tuple[Tensor, list[Array]] | None = None
    for chunk in range(case.t + 2, 0, -1):
        inputs = trainable(subject.inputs(case))
        y = run(subject.layer(case, chunk=chunk), inputs)
        found = gradients_of(y, inputs)
        expected = expected or (y, found)
        error = difference(y, expected[0])
        assert error <= ROUNDING, f"chunk={chunk} and one chunk differ by {error:.2g}"
        for g, g2 in zip(found, expected[1]):
            error = difference(g, g2)
            assert error <= ROUNDING, f"the gradients with chunk={chunk} and one chunk differ by {error:.2g}"


@check(kinds=("token_mixer",), claim="row_stochastic")
def row_stochastic(subject: Subject, case: Case) -> None:
    """The attention map is one: weights of at least 0 that sum to 1 for every query."""
    inputs = subject.inputs(case)
    n = int(np.prod(inputs[0].shape[1:-1]))
    p = subject.layer(case).weights(*inputs).data
    assert p.shape[-2:] == (n, n), f"weights() gave {p.shape} for {n} tokens"
    assert np.all(p >= 0.0), f"there are weights below 0, down to {np.min(p):.2g}"
    error = difference(p.sum(axis=-1), np.ones(p.shape[:-1]))
    assert error <= ROUNDING, f"rows of weights() sum to 1 only within {error:.2g}"
