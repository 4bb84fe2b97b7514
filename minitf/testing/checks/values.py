"""What is computed: identities, a reference, finite values, single precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from minitf.engine import Tensor
from minitf.nn import Case, Module
from minitf.nn import identities as identities_of

from ..strategies import FILLINGS, hiding_row
from ..subject import Subject
from .core import (
    LAYERS,
    MODULES,
    ROUNDING,
    check,
    close,
    difference,
    flat,
    gradients_of,
    has_identities,
    has_reference,
    run,
    trainable,
)


@check(kinds=MODULES, needs=has_identities, share=0.5, size="medium")
def identities(subject: Subject, case: Case) -> None:
    """Every identity in the variant's file holds: it computes what its equations say."""
    for identity in identities_of(subject.home):
        error = identity.error(case)
        assert error <= identity.tolerance, f"{identity.words}: the sides differ by {error:.2g}"


def filled(subject: Subject, case: Case, words: str, dtype: str = "float64") -> tuple[Tensor, ...]:
    """The inputs of a case with tokens of one of `FILLINGS`."""
    x, n = subject.inputs(case, dtype), subject.sequences
    fill = FILLINGS[words]
    # Not all fillings can be had of integers, such as token ids.
    arrays = [
        fill(v.data, subject.axis, subject.axes) if v.dtype.kind == "f" and v.ndim > subject.axis else v.data
        for v in x[:n]
    ]
    return (*map(Tensor, arrays), *x[n:])


def fillings_of(subject: Subject) -> list[str]:
    return [w for w in FILLINGS if not (w == "a single token" and "fixed_grid" in subject.claims)]


@check(kinds=(*LAYERS, "token_reducer", "attention_function"), share=0.2)
def finite(subject: Subject, case: Case) -> None:
    """Zeros, equal rows or features, ties, large values, a single token: values and gradients are finite."""
    for dtype in ("float64", "float32"):
        layer = subject.layer(case, dtype)
        for words in fillings_of(subject):
            inputs = trainable(filled(subject, case, words, dtype))
            y = run(layer, inputs)
            assert np.all(np.isfinite(y.data)), f"{words} in {dtype}: values are not finite"
            for g in gradients_of(y, inputs):
                assert np.all(np.isfinite(g)), f"{words} in {dtype}: gradients are not finite"


def rounding_of(subject: Subject, case: Case) -> float:
    """How far the output in float32 is from that in float64, for the same inputs and parameters."""
    narrow, wide = subject.layer(case, "float32"), subject.layer(case, "float64")
    if isinstance(wide, Module):
        # From the narrow to the wide one, so that no parameter is rounded.
        wide.load_state_dict(narrow.state_dict())
    x = subject.inputs(case, "float32")
    exact = tuple(v.astype("float64") if v.dtype.kind == "f" else v for v in x)
    return difference(run(narrow, x), run(wide, exact))


@check(share=0.2, size="medium")
def precision(subject: Subject, case: Case) -> None:
    """In float32 the result is that of float64 up to its rounding: nothing is computed in less."""
    eps, error = float(np.finfo("float32").eps), rounding_of(subject, case)
    if subject.reference is None:
        allowed, words = 256 * eps, "256 roundings"
    else:
        allowed = 2 * rounding_of(subject.reference, case) + 16 * eps
        words = f"twice that of {subject.reference.name}"
    assert error <= allowed, f"float32 is off by {error:.2g}, more than {words} ({allowed:.2g})"


@check(kinds=("position",), claim="norm_preserving")
def norm_preserving(subject: Subject, case: Case) -> None:
    """Rotating queries and keys keeps their lengths."""
    x = case.rng().standard_normal((case.b, case.h, case.t, case.d))
    y = subject.layer(case).rotate(Tensor(x), np.arange(case.t)).data
    close(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), "lengths change")


def masks_to_compare(subject: Subject, case: Case, heads: int, n: int) -> list[tuple[str, dict[str, Any]]]:
    """Words and the keyword of the call: no mask, and masks of the shapes that both sides can take."""
    found: list[tuple[str, dict[str, Any]]] = [("without a mask", {})]
    if not subject.masks:
        return found
    rng = case.rng()
    keys = rng.random((case.b, 1, 1, n)) < 0.7
    found.append(("with hidden keys", {"mask": keys}))
    if "key_masks" not in subject.claims:
        found.append(("with a mask and an empty row", {"mask": hiding_row(case, n)[0]}))
        found.append(("with a mask for each head", {"mask": rng.random((case.b, heads, n, n)) < 0.7}))
    return found


@check(needs=has_reference)
def reference(subject: Subject, case: Case) -> None:
    """Values and gradients equal those of the reference: with ties, with every kind of mask."""
    other = subject.reference
    assert other is not None
    mine, theirs = subject.layer(case), other.layer(case)
    shared = isinstance(mine, Module) and isinstance(theirs, Module)
    if shared:
        theirs.load_state_dict(mine.state_dict())
    n = flat(subject, subject.inputs(case)[0]).shape[subject.axis]
    heads = case.h if subject.kind == "attention_function" else getattr(mine, "heads", 1)
    both = masks_to_compare(subject, case, heads, n) if other.masks else [("without a mask", {})]
    calls = [(words, subject.inputs(case), options) for words, options in both]
    calls += [(f"with {w}", filled(subject, case, w), {}) for w in fillings_of(subject)]
    calls.append(("with large values and a mask", filled(subject, case, "large values"), both[-1][1]))
    for words, inputs, options in calls:
        x, x2 = trainable(inputs), trainable(inputs)
        y, y2 = run(mine, x, **options), run(theirs, x2, **options)
        close(y, y2, f"{words} it differs from {other.name}")
        if "large values" in words:
            # There a derivative may be as steep as the values are large: rounding decides.
            continue
        for i, (g, g2) in enumerate(zip(gradients_of(y, x), gradients_of(y2, x2))):
            close(g, g2, f"{words} the gradient of input {i} differs from {other.name}")
    if shared:
        slopes = dict(theirs.named_parameters())
        for name, p in mine.named_parameters():
            g, g2 = (np.zeros(p.shape) if v.grad is None else v.grad.data for v in (p, slopes[name]))
            close(g, g2, f"the gradient of {name} differs from {other.name}", 100 * ROUNDING)
