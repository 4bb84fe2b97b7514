"""What every layer promises its caller: shapes, seeds, batches, saved state, identities, a reference."""

from __future__ import annotations

from dataclasses import replace
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
    difference,
    gradients_of,
    has_identities,
    has_reference,
    run,
    trainable,
)


@check()
def shapes_and_dtypes(subject: Subject, case: Case) -> None:
    """The output has the shape and the dtype of the input, so that layers stack in any precision."""
    for dtype in ("float32", "float64"):
        inputs = subject.inputs(case, dtype)
        y = run(subject.layer(case, dtype), inputs)
        assert isinstance(y, Tensor), f"gave {type(y).__name__}, not a Tensor: no gradient can pass"
        x = inputs[0]
        if subject.kind == "token_reducer":
            (b, n, d), fits = x.shape, y.ndim == 3
            assert fits and y.shape[::2] == (b, d) and 1 <= y.shape[1] <= n, f"input {x.shape} gave {y.shape}"
        elif subject.kind != "operation":
            shape = inputs[-1].shape if subject.kind == "attention_function" else x.shape
            assert y.shape == shape, f"input {shape} gave {y.shape}"
        assert y.dtype == dtype, f"input of {dtype} gave {y.dtype}"


@check()
def deterministic(subject: Subject, case: Case) -> None:
    """Two runs, and two layers of one seed, agree bit for bit, whatever was computed between."""
    layer, x = subject.layer(case), subject.inputs(case)
    y = run(layer, x).data.copy()
    run(layer, tuple(v * 2.0 if v.dtype.kind == "f" else v for v in x))
    same = np.array_equal(run(layer, x).data, y, equal_nan=True)
    assert same, "a second run of one layer differs: it draws or remembers"
    again = run(subject.layer(case), x).data
    assert np.array_equal(again, y, equal_nan=True), "two layers of one seed differ"


@check()
def inputs_not_modified(subject: Subject, case: Case) -> None:
    """Inputs and parameters belong to the caller; forward and backward leave them as they are."""
    layer, x = subject.layer(case), trainable(subject.inputs(case))
    before = [v.data.copy() for v in x]
    state = layer.state_dict() if isinstance(layer, Module) else {}
    y = run(layer, x)
    for i, (v, old) in enumerate(zip(x, before)):
        assert np.array_equal(v.data, old), f"forward changed input {i}"
    gradients_of(y, x)
    for i, (v, old) in enumerate(zip(x, before)):
        assert np.array_equal(v.data, old), f"backward changed input {i}"
    for key in state:
        assert np.array_equal(layer.state_dict()[key], state[key]), f"a run changed {key}"


@check()
def batch_independent(subject: Subject, case: Case) -> None:
    """Each example of a batch gives what it gives alone."""
    layer, x = subject.layer(case), subject.inputs(case)
    alone = np.concatenate([run(layer, tuple(v[i : i + 1] for v in x)).data for i in range(case.b)])
    error = difference(alone, run(layer, x))
    assert error <= ROUNDING, f"examples alone and in their batch differ by {error:.2g}"


@check(kinds=("channel_mixer",))
def token_wise(subject: Subject, case: Case) -> None:
    """A token alone gives what it gives among others."""
    layer, x = subject.layer(case), subject.inputs(case)[0]
    alone = np.stack([run(layer, (x[:, t],)).data for t in range(case.t)], axis=1)
    error = difference(alone, run(layer, (x,)))
    assert error <= ROUNDING, f"tokens alone and among others differ by {error:.2g}"


@check(kinds=MODULES, needs=has_identities, share=0.5)
def identities(subject: Subject, case: Case) -> None:
    """Every identity in the variant's file holds: it computes what its equations say."""
    for identity in identities_of(subject.home):
        error = identity.error(case)
        assert error <= identity.tolerance, f"{identity.words}: the sides differ by {error:.2g}"


@check(kinds=(*LAYERS, "token_reducer", "operation", "position"), share=0.2)
def state_dict_round_trip(subject: Subject, case: Case) -> None:
    """What is saved is all there is: loaded into a layer of another seed it gives the same outputs."""
    one, two = subject.layer(case), subject.layer(replace(case, seed=case.seed + 1))
    assert isinstance(one, Module), f"{type(one).__name__} has no state_dict: derive it from minitf.nn.Module"
    state = one.state_dict()
    two.load_state_dict(state)
    for key, value in two.state_dict().items():
        assert np.array_equal(value, state[key]), f"{key} did not survive the round trip"
    if subject.kind != "position":
        x = subject.inputs(case)
        error = difference(run(two, x), run(one, x))
        assert error == 0.0, f"with its state loaded another layer differs by {error:.2g}: not all is saved"


@check(kinds=(*LAYERS, "token_reducer", "attention_function"), share=0.2)
def finite(subject: Subject, case: Case) -> None:
    """Zeros, equal rows, large values and a single token give finite values and gradients."""
    layer, x = subject.layer(case), subject.inputs(case)
    for words, fill in FILLINGS.items():
        if words == "a single token" and "fixed_grid" in subject.claims:
            continue
        filled = [fill(v.data, subject.axis, subject.axes) for v in x[: subject.sequences]]
        inputs = trainable((*map(Tensor, filled), *x[subject.sequences :]))
        y = run(layer, inputs)
        assert np.all(np.isfinite(y.data)), f"{words}: values are not finite"
        for g in gradients_of(y, inputs):
            assert np.all(np.isfinite(g)), f"{words}: gradients are not finite"


@check(kinds=("position",), claim="norm_preserving")
def norm_preserving(subject: Subject, case: Case) -> None:
    """Rotating queries and keys keeps their lengths."""
    x = case.rng().standard_normal((case.b, case.h, case.t, case.d))
    y = subject.layer(case).rotate(Tensor(x), np.arange(case.t)).data
    error = difference(np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1))
    assert error <= ROUNDING, f"lengths change by {error:.2g}"


@check(needs=has_reference)
def reference(subject: Subject, case: Case) -> None:
    """Values and gradients equal those of the reference, with and without a mask."""
    other = subject.reference
    assert other is not None
    mine, theirs = subject.layer(case), other.layer(case)
    if isinstance(mine, Module) and isinstance(theirs, Module):
        theirs.load_state_dict(mine.state_dict())
    masks: list[dict[str, Any]] = [{}]
    if subject.masks and other.masks:
        masks.append({"mask": hiding_row(case)[0]})
    for options in masks:
        x, x2 = trainable(subject.inputs(case)), trainable(subject.inputs(case))
        y, y2 = run(mine, x, **options), run(theirs, x2, **options)
        words = "with a mask" if options else "without a mask"
        error = difference(y, y2)
        assert error <= ROUNDING, f"{words} it differs from {other.name} by {error:.2g}"
        for i, (g, g2) in enumerate(zip(gradients_of(y, x), gradients_of(y2, x2))):
            error = difference(g, g2)
            assert error <= ROUNDING, (
                f"{words} the gradient of input {i} differs from {other.name} by {error:.2g}"
            )
