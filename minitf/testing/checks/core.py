"""What the checks share: the list they enter, what excuses them, and how they compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minitf.engine import Array, Tensor
from minitf.nn import Case
from minitf.nn import identities as identities_of

from ..subject import Subject

Check = Callable[[Subject, Case], None]
# Every check by name, in the order of the report.
CHECKS: dict[str, Check] = {}
# Float64 results that differ in the order of summation only.
ROUNDING = 1e-10
# Kinds that are layers of one input with a token axis.
LAYERS = ("token_mixer", "channel_mixer", "block")
# Kinds in which tokens see each other.
MIXERS = ("token_mixer", "block", "attention_function")
# Kinds that can be called at all.
CALLED = (*LAYERS, "token_reducer", "operation", "attention_function")
# Kinds that are modules.
MODULES = (*LAYERS, "token_reducer", "operation", "position", "procedure")


def check(
    *,
    kinds: tuple[str, ...] = CALLED,
    claim: str = "",
    needs: Callable[[Subject], str] | None = None,
    share: float = 1.0,
    size: str = "large",
) -> Callable[[Check], Check]:
    """Enter a check in the list.

    Args:
        kinds: those it applies to.
        claim: the claim that turns it on, if it needs one.
        needs: gives what else is missing, as words, or "".
        share: of the examples asked for; slow checks take fewer, 0 takes one.
        size: of its cases: "small" for numerical derivatives, "medium" up to 17 tokens, "large" up to 70.
    """

    def enter(run: Check) -> Check:
        def excuse(subject: Subject) -> str:
            if subject.kind not in kinds:
                return f"not for {subject.kind}"
            if claim and not any(c == claim or c.startswith(f"{claim}_") for c in subject.claims):
                return f"{claim} is not claimed"
            return needs(subject) if needs else ""

        run.excuse, run.share, run.size = excuse, share, size  # type: ignore[attr-defined]
        CHECKS[run.__name__] = run
        return run

    return enter


def takes_mask(subject: Subject) -> str:
    return "" if subject.masks else "takes no mask"


def hides_pairs(subject: Subject) -> str:
    return "its mask hides keys only" if "key_masks" in subject.claims else takes_mask(subject)


def takes_any_length(subject: Subject) -> str:
    if subject.axes > 1:
        return "not for grids"
    return "built for one grid of tokens" if "fixed_grid" in subject.claims else ""


def can_be_rebuilt(subject: Subject) -> str:
    """For checks that build with options: an instance is what it is."""
    return "" if subject.accepts else "an instance or a factory without arguments cannot be built otherwise"


def has_identities(subject: Subject) -> str:
    found = identities_of(subject.home) if isinstance(subject.home, type) else []
    return "" if found else "its file has no identities"


def has_reference(subject: Subject) -> str:
    return "no reference is given" if subject.reference is None else ""


def run(layer: Any, inputs: tuple[Tensor, ...], **options: Any) -> Tensor:
    """The output of a call; the first, if it gives several."""
    y = layer(*inputs, **options)
    return y[0] if isinstance(y, tuple) else y


def difference(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest element of b or 1. NaN if either has one."""
    a, b = (v.data if isinstance(v, Tensor) else np.asarray(v) for v in (a, b))
    if a.shape != b.shape:
        raise AssertionError(f"shapes {a.shape} and {b.shape} differ")
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b)))) if a.size else 0.0


def close(a: Any, b: Any, words: str, limit: float = ROUNDING) -> None:
    """Assert that two results agree; `words` say what differs, and how much is added."""
    error = difference(a, b)
    assert error <= limit, f"{words} by {error:.2g}"


def window(subject: Subject, a: Any, start: int, stop: int) -> Any:
    """The tokens (or rows of a grid) start..stop-1 of an input or output."""
    return a[(slice(None),) * subject.axis + (slice(start, stop),)]


def flat(subject: Subject, a: Any) -> Any:
    """An input or output with its grid of tokens as one axis: (B, N, D) or (B, H, N, d)."""
    start, stop = subject.axis, subject.axis + subject.axes
    return a if subject.axes == 1 else a.reshape((*a.shape[:start], -1, *a.shape[stop:]))


def changed(subject: Subject, inputs: tuple[Tensor, ...], change: Callable[[Array], Array]) -> Any:
    """The inputs with those that hold tokens changed."""
    n = subject.sequences
    return (*(Tensor(np.array(change(v.data))) for v in inputs[:n]), *inputs[n:])


def trainable(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(Tensor(x.data.copy(), requires_grad=x.dtype.kind == "f") for x in inputs)


def gradients_of(y: Tensor, inputs: tuple[Tensor, ...], again: bool = False) -> list[Array]:
    """The gradients of <c, y> for a random c; zeros where y does not depend on an input.

    again: keep what a further backward pass needs.
    """
    for x in inputs:
        x.grad = None
    if y.requires_grad:
        c = np.random.default_rng([0, 1]).standard_normal(y.shape)
        y.backward(c.astype(y.dtype), retain_graph=again)
    return [np.zeros(x.shape) if x.grad is None else x.grad.data for x in inputs]
