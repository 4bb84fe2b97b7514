"""What is computed in pieces: token by token, prefilled, in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, Tensor
from minitf.nn import Case

from ..subject import Subject
from .core import LAYERS, can_be_rebuilt, check, close, gradients_of, run, trainable


def streamed(layer: Any, x: Tensor, first: int, second: int) -> Tensor:
    """The output of `first` tokens prefilled, then up to `second` prefilled, then the rest by steps.

    Each state, of many steps every eighth, is continued twice, and the one before the first step once more
    at the end.
    """
    rows: list[Any] = []
    state = layer.start(batch=x.shape[0])
    for start, stop in ((0, first), (first, second)):
        if start < stop:
            # Another continuation of the same state: it must leave no trace.
            layer.prefill(x[:, start:stop] * -2.0, state)
            y, state = layer.prefill(x[:, start:stop], state)
            rows += [y[:, i] for i in range(stop - start)]
    before, every = state, 1 if x.shape[1] <= 17 else 8
    for i in range(second, x.shape[1]):
        if i % every == 0:
            layer.step(x[:, i] * -3.0, state)
        y, state = layer.step(x[:, i], state)
        rows.append(y)
    if second < x.shape[1]:
        y, _ = layer.step(x[:, second], before)
        close(y, rows[second], "an old state, continued after all others, gives an output that differs", 0.0)
    return ops.stack(rows, axis=1)


@check(kinds=("token_mixer", "block"), claim="streams", share=0.5)
def streams(subject: Subject, case: Case) -> None:
    """Steps, and one or two prefills then steps, equal the whole; a state may be continued twice."""
    options: dict[str, Any] = (
        {"chunk": 1 + case.seed % 5}
        if subject.accepts and "chunked" in subject.claims and case.seed % 2
        else {}
    )
    layer, x = subject.layer(case, **options), subject.inputs(case)[0]
    whole = run(layer, (x,))
    pieces = {(0, 0), (case.t // 2, case.t - 1), (case.t, case.t)}
    if case.t <= 17:
        some = case.seed % (case.t + 1)
        pieces.add((some, some))
    for first, second in sorted(pieces) if hasattr(layer, "prefill") else [(0, 0)]:
        y = streamed(layer, x, first, second)
        close(
            y,
            whole,
            f"{first} tokens prefilled, {second - first} more, and {case.t - second} steps, each state "
            "continued twice, differ from the whole",
        )
    single = subject.layer(case, "float32", **options)
    y, _ = single.step(x[:, 0].astype("float32"), single.start(batch=case.b))
    shape = (case.b, whole.shape[-1])
    assert y.shape == shape and y.dtype == np.float32, (
        f"a step in float32 gave {y.shape} of {y.dtype}, not {shape} of float32"
    )


@check(kinds=LAYERS, claim="chunked", needs=can_be_rebuilt, share=0.3, size="medium")
def every_chunk_size(subject: Subject, case: Case) -> None:
    """Cut into chunks of any size, the sequence gives the same outputs and gradients."""
    expected: tuple[Tensor, list[Array]] | None = None
    n = case.t
    few = {n + 2, n + 1, n, n - 1, n // 2, 16, 5, 4, 3, 2, 1}
    for chunk in sorted((c for c in few if 0 < c <= n + 2), reverse=True):
        inputs = trainable(subject.inputs(case))
        y = run(subject.layer(case, chunk=chunk), inputs)
        found = gradients_of(y, inputs)
        expected = expected or (y, found)
        close(y, expected[0], f"chunk={chunk} and one chunk differ")
        for g, g2 in zip(found, expected[1]):
            close(g, g2, f"the gradients with chunk={chunk} and one chunk differ")
