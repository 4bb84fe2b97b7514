"""The checks: free functions check(subject, case), one for each thing that must hold.

The first line of each says why it is there. A check that does not apply to a subject is never run, and the
results say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitf import ops
from minitf.engine import Array, GradientError, Tensor, check_grad
from minitf.nn import Case, Module, Parameter
from minitf.nn import identities as identities_of

from .subject import Subject

Check = Callable[[Subject, Case], None]
# Every check by name, in the order of the report.
CHECKS: dict[str, Check] = {}
# Float64 results that differ in the order of summation only.
ROUNDING = 1e-10
MODULES = ("token_mixer", "channel_mixer", "block", "position")


def check(
    *,
    kinds: tuple[str, ...] = (),
    claim: str = "",
    needs: Callable[[Subject], str] | None = None,
    share: float = 1.0,
    small: bool = False,
) -> Callable[[Check], Check]:
    """Enter a check in the list.

    Args:
        kinds: those it applies to; all but "position" if empty.
        claim: the claim that turns it on, if it needs one.
        needs: gives what else is missing, as words, or "".
        share: of the examples asked for; slow checks take fewer. small: draw small sizes only.
    """

    def enter(run: Check) -> Check:
        def excuse(subject: Subject) -> str:
            allowed = kinds or ("token_mixer", "channel_mixer", "block", "attention_function")
            if subject.kind not in allowed:
                return f"not for {subject.kind}"
            if claim and not any(c == claim or c.startswith(f"{claim}_without_") for c in subject.claims):
                return f"{claim} is not claimed"
            return needs(subject) if needs else ""

        run.excuse, run.share, run.small = excuse, share, small  # type: ignore[attr-defined]
        CHECKS[run.__name__] = run
        return run

    return enter


def takes_mask(subject: Subject) -> str:
    return "" if subject.masks else "takes no mask"


def has_identities(subject: Subject) -> str:
    found = identities_of(subject.home) if isinstance(subject.home, type) else []
    return "" if found else "its file has no identities"


def has_reference(subject: Subject) -> str:
    return "no reference is given" if subject.reference is None else ""


def difference(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest element of b or 1. NaN if either has one."""
    a, b = (v.data if isinstance(v, Tensor) else np.asarray(v) for v in (a, b))
    if a.shape != b.shape:
        raise AssertionError(f"shapes {a.shape} and {b.shape} differ")
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b)))) if a.size else 0.0


def window(subject: Subject, a: Any, start: int, stop: int) -> Any:
    """The tokens start..stop-1 of an input or output."""
    return a[(slice(None),) * subject.axis + (slice(start, stop),)]


def trainable(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(Tensor(x.data.copy(), requires_grad=True) for x in inputs)


def gradients_of(y: Tensor, inputs: tuple[Tensor, ...], seed: int = 0) -> list[Array]:
    """The gradients of <c, y> for a random c; zeros where y does not depend on an input."""
    if y.requires_grad:
        y.backward(np.random.default_rng([seed, 1]).standard_normal(y.shape))
    return [np.zeros(x.shape) if x.grad is None else x.grad.data for x in inputs]


@check()
def shapes_and_dtypes(subject: Subject, case: Case) -> None:
    """The output has the shape and the dtype of the input, so that layers stack in any precision."""
    for dtype in ("float32", "float64"):
        inputs = subject.inputs(case, dtype)
        y = subject.layer(case, dtype)(*inputs)
        assert isinstance(y, Tensor), f"gave {type(y).__name__}, not a Tensor: no gradient can pass"
        x = inputs[-1]
        assert y.shape == x.shape, f"input {x.shape} gave {y.shape}"
        assert y.dtype == x.dtype, f"input of {x.dtype} gave {y.dtype}"


@check()
def deterministic(subject: Subject, case: Case) -> None:
    """Two runs, and two layers of one seed, agree bit for bit, whatever was computed between."""
    layer, x = subject.layer(case), subject.inputs(case)
    y = layer(*x).data.copy()
    layer(*(v * 2.0 for v in x))
    same = np.array_equal(layer(*x).data, y, equal_nan=True)
    assert same, "a second run of one layer differs: it draws or remembers"
    again = subject.layer(case)(*x).data
    assert np.array_equal(again, y, equal_nan=True), "two layers of one seed differ"


@check()
def inputs_not_modified(subject: Subject, case: Case) -> None:
    """Inputs and parameters belong to the caller; forward and backward leave them as they are."""
    layer, x = subject.layer(case), trainable(subject.inputs(case))
    before = [v.data.copy() for v in x]
    state = layer.state_dict() if isinstance(layer, Module) else {}
    y = layer(*x)
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
    alone = np.concatenate([layer(*(v[i : i + 1] for v in x)).data for i in range(case.b)])
    error = difference(alone, layer(*x))
    assert error <= ROUNDING, f"examples alone and in their batch differ by {error:.2g}"


@check(share=0.15, small=True)
def gradients(subject: Subject, case: Case) -> None:
    """First and second derivatives of inputs and of every parameter match central differences."""
    layer, x = subject.layer(case), subject.inputs(case)
    # Parameters become arguments, moved off values such as 0 and 1 where a wrong derivative can hide.
    parameters = layer.parameters() if isinstance(layer, Module) else []
    place = {id(p): i for i, p in enumerate(parameters)}
    slots = [
        (module, key, place[id(value)])
        for module in (layer.modules() if parameters else ())
        for key, value in vars(module).items()
        if isinstance(value, Parameter)
    ]
    rng = case.rng()
    arrays = [p.data + 0.1 * rng.standard_normal(p.shape) for p in parameters]

    def f(*args: Tensor) -> Tensor:
        for owner, key, i in slots:
            setattr(owner, key, args[len(x) + i])
        return layer(*args[: len(x)])

    # A strongly curved function needs a shorter step; a wrong derivative agrees with none.
    for step in (1e-6, 1e-7, 1e-8):
        try:
            check_grad(f, *(v.data for v in x), *arrays, seed=case.seed, step=step, tolerance=1e-5)
            return
        except GradientError as error:
            wrong = error
    raise wrong


@check(claim="causal")
def causal(subject: Subject, case: Case) -> None:
    """No output depends on a later token: not its value, and not its gradient."""
    layer, x = subject.layer(case), subject.inputs(case)
    y = layer(*x).data
    for t in {1, case.t // 2, case.t - 1} - {0, case.t}:
        changed = tuple(Tensor(v.data.copy()) for v in x)
        for v in changed:
            late = window(subject, v.data, t, case.t)
            late[...] = 9.0 - late
        early = window(subject, y, 0, t)
        error = difference(window(subject, layer(*changed).data, 0, t), early)
        assert error == 0.0, f"outputs before token {t} moved by {error:.2g} when tokens from {t} on changed"
        inputs = trainable(x)
        for g in gradients_of(window(subject, layer(*inputs), 0, t), inputs):
            size = np.max(np.abs(window(subject, g, t, case.t)))
            assert size == 0.0, f"gradients of outputs before token {t} reach later tokens ({size:.2g})"


def hiding_row(case: Case) -> tuple[Array, int]:
    """A random mask (B, 1, N, N) in which every token sees itself, but for one row that sees nothing."""
    rng = case.rng()
    mask = rng.random((case.b, 1, case.t, case.t)) < 0.6
    mask |= np.eye(case.t, dtype=bool)
    row = int(rng.integers(case.t))
    mask[:, :, row] = False
    return mask, row


@check(kinds=("token_mixer", "attention_function"), needs=takes_mask)
def mask_rule(subject: Subject, case: Case) -> None:
    """A query that sees nothing gives zeros and passes zero gradients, and others stay finite."""
    mask, row = hiding_row(case)
    kept = mask.copy()
    inputs = trainable(subject.inputs(case))
    y = subject.layer(case)(*inputs, mask=mask)
    assert np.array_equal(mask, kept), "the mask was changed"
    assert np.all(np.isfinite(y.data)), "a mask with an empty row gives values that are not finite"
    empty = window(subject, y, row, row + 1)
    size = np.max(np.abs(empty.data))
    assert size == 0.0, f"query {row} sees nothing and should give zeros, not up to {size:.2g}"
    for g in gradients_of(empty, inputs):
        assert np.all(g == 0.0), f"the gradient of query {row}, which sees nothing, is not zero"
    inputs = trainable(inputs)
    for g in gradients_of(subject.layer(case)(*inputs, mask=mask), inputs):
        assert np.all(np.isfinite(g)), "a mask with an empty row gives gradients that are not finite"


@check(kinds=("token_mixer", "block", "attention_function"), needs=takes_mask)
def padding_invariant(subject: Subject, case: Case) -> None:
    """Hidden tokens change nothing: neither that they are there, nor what they hold."""
    more = 1 + case.seed % 3
    layer, x = subject.layer(case), subject.inputs(case, more=more)
    mask = (np.arange(case.t + more) < case.t)[None, None, None, :]
    padded = window(subject, layer(*x, mask=mask), 0, case.t)
    error = difference(padded, layer(*(window(subject, v, 0, case.t) for v in x)))
    assert error <= ROUNDING, f"with {more} hidden tokens at the end the others differ by {error:.2g}"
    # Anywhere else they still take a place, but what they hold must not matter.
    hidden = case.rng().random((case.b, case.t)) < 0.5
    x = subject.inputs(case)
    at = hidden[:, :, None] if subject.axis == 1 else hidden[:, None, :, None]
    changed = tuple(Tensor(np.where(at, 9.0 - v.data, v.data)) for v in x)
    mask = ~hidden[:, None, None, :]
    error = difference(*(np.where(at, 0.0, layer(*v, mask=mask).data) for v in (changed, x)))
    assert error <= ROUNDING, f"what hidden tokens hold changes the others by {error:.2g}"


@check(kinds=("token_mixer", "block", "attention_function"), claim="permutation_equivariant")
def permutation_equivariant(subject: Subject, case: Case) -> None:
    """Tokens in another order give the same outputs in that order: there is no notion of place."""
    without_causal = "permutation_equivariant_without_causal" in subject.claims
    options: dict[str, Any] = {"causal": False} if without_causal else {}
    layer = subject.layer(case, **options)
    x, order = subject.inputs(case), case.rng().permutation(case.t)
    moved = layer(*(Tensor(np.take(v.data, order, axis=subject.axis)) for v in x))
    error = difference(moved, np.take(layer(*x).data, order, axis=subject.axis))
    assert error <= ROUNDING, f"permuted inputs and permuted outputs differ by {error:.2g}"


@check(kinds=("token_mixer", "block"), claim="streams")
def streams(subject: Subject, case: Case) -> None:
    """Token by token, and prefilled then token by token, equals the whole; a state may be continued twice."""
    layer, x = subject.layer(case), subject.inputs(case)[0]
    whole = layer(x).data
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


@check(kinds=("channel_mixer",))
def token_wise(subject: Subject, case: Case) -> None:
    """A token alone gives what it gives among others."""
    layer, x = subject.layer(case), subject.inputs(case)[0]
    alone = np.stack([layer(x[:, t]).data for t in range(case.t)], axis=1)
    error = difference(alone, layer(x))
    assert error <= ROUNDING, f"tokens alone and among others differ by {error:.2g}"


@check(kinds=MODULES, needs=has_identities, share=0.5)
def identities(subject: Subject, case: Case) -> None:
    """Every identity in the variant's file holds: it computes what its equations say."""
    for identity in identities_of(subject.home):
        error = identity.error(case)
        assert error <= identity.tolerance, f"{identity.words}: the sides differ by {error:.2g}"


@check(kinds=MODULES, share=0.2)
def state_dict_round_trip(subject: Subject, case: Case) -> None:
    """What is saved is all there is: loaded into a layer of another seed it gives the same outputs."""
    one, two = subject.layer(case), subject.layer(Case(case.b, case.t, case.h, case.d, case.seed + 1))
    assert isinstance(one, Module), f"{type(one).__name__} has no state_dict: derive it from minitf.nn.Module"
    state = one.state_dict()
    two.load_state_dict(state)
    for key, value in two.state_dict().items():
        assert np.array_equal(value, state[key]), f"{key} did not survive the round trip"
    if subject.kind != "position":
        x = subject.inputs(case)
        error = difference(two(*x), one(*x))
        assert error == 0.0, f"with its state loaded another layer differs by {error:.2g}: not all is saved"


@check(share=0.2)
def finite(subject: Subject, case: Case) -> None:
    """Zeros, equal rows, large values and a single token give finite values and gradients."""
    layer, x = subject.layer(case), subject.inputs(case)
    first = [window(subject, v.data, 0, 1) for v in x]
    fillings = {
        "zeros": [np.zeros_like(v.data) for v in x],
        "equal rows": [np.repeat(v, case.t, axis=subject.axis) for v in first],
        "large values": [v.data * 1e3 for v in x],
        "a single token": first,
    }
    for words, arrays in fillings.items():
        inputs = tuple(Tensor(a.copy(), requires_grad=True) for a in arrays)
        y = layer(*inputs)
        assert np.all(np.isfinite(y.data)), f"{words}: values are not finite"
        for g in gradients_of(y, inputs):
            assert np.all(np.isfinite(g)), f"{words}: gradients are not finite"


@check(kinds=("token_mixer",), claim="row_stochastic")
def row_stochastic(subject: Subject, case: Case) -> None:
    """The attention map is one: weights of at least 0 that sum to 1 for every query."""
    p = subject.layer(case).weights(*subject.inputs(case)).data
    assert p.shape[-2:] == (case.t, case.t), f"weights() gave {p.shape} for {case.t} tokens"
    assert np.all(p >= 0.0), f"there are weights below 0, down to {np.min(p):.2g}"
    error = difference(p.sum(axis=-1), np.ones(p.shape[:-1]))
    assert error <= ROUNDING, f"rows of weights() sum to 1 only within {error:.2g}"


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
        y, y2 = mine(*x, **options), theirs(*x2, **options)
        words = "with a mask" if options else "without a mask"
        error = difference(y, y2)
        assert error <= ROUNDING, f"{words} it differs from {other.name} by {error:.2g}"
        for i, (g, g2) in enumerate(zip(gradients_of(y, x), gradients_of(y2, x2))):
            error = difference(g, g2)
            assert error <= ROUNDING, (
                f"{words} the gradient of input {i} differs from {other.name} by {error:.2g}"
            )
