"""What a mask promises: hidden is hidden, an empty row gives zeros, and any shape that broadcasts will do."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.engine import Array, ShapeError
from minitf.nn import Case

from ..strategies import hiding_row, random_mask
from ..subject import Subject
from .core import (
    check,
    close,
    difference,
    flat,
    gradients_of,
    hides_pairs,
    run,
    takes_mask,
    trainable,
    window,
)


def tokens_of(subject: Subject, case: Case) -> int:
    """N: how many tokens the inputs of a case have."""
    return int(flat(subject, subject.inputs(case)[0]).shape[subject.axis])


def token(subject: Subject, a: Any, i: int) -> Any:
    """Token i of an input or output, over the whole grid."""
    return flat(subject, a)[(slice(None),) * subject.axis + (slice(i, i + 1),)]


def rewritten(subject: Subject, case: Case, hidden: Array, factor: float = 1.0) -> Any:
    """The inputs with other values, `factor` times as large, where `hidden` (B, N) says so."""
    at = hidden[:, :, None] if subject.axis == 1 else hidden[:, None, :, None]

    def change(v: Array) -> Array:
        return np.where(at, factor * (9.0 - flat(subject, v)), flat(subject, v)).reshape(v.shape)

    x, n = subject.inputs(case), subject.sequences
    return trainable((*(type(v)(change(v.data)) for v in x[:n]), *x[n:]))


@check(kinds=("token_mixer", "attention_function"), needs=hides_pairs)
def mask_rule(subject: Subject, case: Case) -> None:
    """A query that sees nothing gives zeros and passes zero gradients, and others stay finite."""
    mask, row = hiding_row(case, tokens_of(subject, case))
    inputs = trainable(subject.inputs(case))
    y = run(subject.layer(case), inputs, mask=mask)
    assert np.all(np.isfinite(y.data)), "a mask with an empty row gives values that are not finite"
    empty = token(subject, y, row)
    size = np.max(np.abs(empty.data))
    assert size == 0.0, f"query {row} sees nothing and should give zeros, not up to {size:.2g}"
    for g in gradients_of(empty, inputs):
        assert np.all(g == 0.0), f"the gradient of query {row}, which sees nothing, is not zero"
    inputs = trainable(inputs)
    for g in gradients_of(run(subject.layer(case), inputs, mask=mask), inputs):
        assert np.all(np.isfinite(g)), "a mask with an empty row gives gradients that are not finite"


@check(kinds=("token_mixer", "attention_function"), needs=hides_pairs, share=0.5)
def hidden_pairs(subject: Subject, case: Case) -> None:
    """What a mask hides from a query does not reach it: neither its value nor a gradient."""
    n = tokens_of(subject, case)
    mask, layer = random_mask(case.rng(), case.b, n), subject.layer(case)
    y = run(layer, subject.inputs(case), mask=mask).data
    for i in {0, n // 2, n - 1, case.seed % n}:
        hidden = ~mask[:, 0, i]
        # At one query very large values, which a hidden -1e4 would let through.
        inputs = rewritten(subject, case, hidden, 1e3 if i == n - 1 else 1.0)
        seen = token(subject, run(layer, inputs, mask=mask), i)
        close(seen, token(subject, y, i), f"tokens hidden from query {i} change it")
        for g in gradients_of(seen, inputs)[: subject.sequences]:
            g = np.moveaxis(flat(subject, g), subject.axis, 1)[hidden]
            size = np.max(np.abs(g), initial=0.0)
            assert size <= 1e-10, f"the gradient of query {i} reaches tokens hidden from it ({size:.2g})"


@check(kinds=("token_mixer", "attention_function"), needs=takes_mask, share=0.3)
def mask_shapes(subject: Subject, case: Case) -> None:
    """A mask means the same in every shape that broadcasts to (B, H, N, N), and each head heeds its own."""
    n, rng = tokens_of(subject, case), case.rng()
    layer, x = subject.layer(case), subject.inputs(case)
    pairs = random_mask(rng, 1, n)[0, 0]
    if "key_masks" in subject.claims:
        if n > 1:
            try:
                run(layer, x, mask=np.broadcast_to(pairs, (case.b, 1, n, n)))
            except (ShapeError, ValueError):
                return
            raise AssertionError("hides keys only, but takes a mask (B, 1, N, N): refuse it (ShapeError)")
        return
    y = run(layer, x, mask=np.broadcast_to(pairs, (case.b, 1, n, n)))
    close(run(layer, x, mask=pairs), y, "a mask (N, N) and the same as (B, 1, N, N) differ")
    close(run(layer, x, mask=pairs[None, None]), y, "a mask (1, 1, N, N) and the same as (B, 1, N, N) differ")
    keys = rng.random((case.b, 1, 1, n)) < 0.6
    full = np.broadcast_to(keys, (case.b, 1, n, n))
    close(run(layer, x, mask=keys), run(layer, x, mask=full), "masks (B, 1, 1, N) and (B, 1, N, N) differ")
    heads = case.h if subject.kind == "attention_function" else getattr(layer, "heads", 0)
    if not heads:
        return
    each = np.broadcast_to(pairs, (case.b, heads, n, n))
    close(run(layer, x, mask=each), y, "masks (B, H, N, N) and (B, 1, N, N) differ")
    # With every token visible in all heads but one, that head must be missed; on enough tokens that a layer
    # which leaves out heads by choice uses each somewhere.
    whole = np.ones((case.b, heads, n, n), dtype=bool)
    if heads == 1 or case.b * n < 10 or not np.any(y.data):
        return
    all_heads = run(layer, x, mask=whole)
    for h in range(heads):
        one = whole.copy()
        one[:, h] = False
        assert difference(run(layer, x, mask=one), all_heads) > 0.0, f"head {h} does not heed its mask"


@check(kinds=("token_mixer", "block", "attention_function"), needs=takes_mask)
def padding_invariant(subject: Subject, case: Case) -> None:
    """Hidden tokens change nothing: neither that they are there, nor what they hold."""
    more, n = 1 + case.seed % 3, tokens_of(subject, case)
    layer = subject.layer(case)
    if "fixed_grid" not in subject.claims and subject.axes == 1:
        x = subject.inputs(case, more=more)
        mask = (np.arange(n + more) < n)[None, None, None, :].repeat(case.b, axis=0)
        padded = window(subject, run(layer, x, mask=mask), 0, n)
        short = (*(window(subject, v, 0, n) for v in x[: subject.sequences]), *x[subject.sequences :])
        close(padded, run(layer, short), f"with {more} hidden tokens at the end the others differ")
    # Elsewhere they take a place, but what they hold must not matter. One example may be all hidden.
    hidden = case.rng().random((case.b, n)) < 0.5
    hidden[case.b - 1] |= case.b > 1 and case.seed % 2 == 0
    mask = ~hidden[:, None, None, :]
    x, other = trainable(subject.inputs(case)), rewritten(subject, case, hidden)
    y = run(layer, x, mask=mask)
    seen, same = (
        np.moveaxis(flat(subject, v.data), subject.axis, 1)[~hidden]
        for v in (y, run(layer, other, mask=mask))
    )
    close(same, seen, "what hidden tokens hold changes the others")
    keep = np.moveaxis((~hidden)[(...,) + (None,) * (flat(subject, y).ndim - 2)], 1, subject.axis)
    for g in gradients_of(flat(subject, y) * keep, x)[: subject.sequences]:
        assert np.all(np.isfinite(g)), "with hidden tokens there are gradients that are not finite"
        size = np.max(np.abs(np.moveaxis(flat(subject, g), subject.axis, 1)[hidden]), initial=0.0)
        assert size <= 1e-10, f"gradients of the others reach hidden tokens ({size:.2g})"
