"""What a check is given: one way to build and call a variant, whatever it was handed in as."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from minitf import ops
from minitf.engine import Tensor
from minitf.nn import Case, Module
from minitf.registry import variant_class

from .handed_in import builder_of, code_of, inherited, name_of, parameters_of
from .kinds import CATALOGUE_KINDS, CLAIMS, GRIDS, KINDS, UsageError, known


@dataclass(frozen=True)
class Subject:
    """A variant, ready to be checked. Made by `subject`.

    Attributes:
        name: for people. kind: one of `KINDS`. claims: names from `CLAIMS`.
        build: called with the keywords of `accepts` among dim, heads, seed, dtype, grid, context and the
            options of a check; gives the layer.
        width: D where it is fixed, as for an instance.
        grid: one of `GRIDS`. card: its card, if it has one.
        keywords: what a call takes beside its inputs, such as mask, positions, rng.
        home: the object whose file holds the identities, or None.
        reference: what it must equal, or None.
        code: the line that imports it (or names it) and the expression that makes this subject.
    """

    name: str
    kind: str
    claims: frozenset[str]
    build: Callable[..., Any]
    accepts: frozenset[str]
    width: int | None
    grid: str
    card: Any
    keywords: frozenset[str]
    home: Any
    reference: Subject | None
    code: tuple[str, str]

    @property
    def masks(self) -> bool:
        """Whether a call takes `mask`."""
        return "mask" in self.keywords

    @property
    def axis(self) -> int:
        """The first axis of tokens in every input and in the output."""
        return 2 if self.kind == "attention_function" else 1

    @property
    def axes(self) -> int:
        """How many axes of tokens there are."""
        return 2 if self.grid in ("2d", "nd") else 1

    @property
    def sequences(self) -> int:
        """How many of the inputs hold tokens; others come after them."""
        return 3 if self.kind == "attention_function" else 1

    def layer(self, case: Case, dtype: str = "float64", **options: Any) -> Any:
        """The layer of this case, in eval mode."""
        dim = self.width or case.dim
        grid = (case.t, case.w) if self.axes == 2 else case.t
        wanted = {"dim": dim, "heads": case.h, "seed": case.seed, "dtype": dtype, "grid": grid}
        # Longer than any input: weights for a shorter sequence are a part of those.
        wanted["context"] = case.t * (case.w if self.axes == 2 else 1) + 4
        layer = self.build(**{k: v for k, v in wanted.items() if k in self.accepts}, **options)
        if isinstance(layer, Module):
            layer.eval()
            if "dtype" not in self.accepts:
                layer.to(dtype)
        return layer

    def inputs(self, case: Case, dtype: str = "float64", more: int = 0) -> tuple[Tensor, ...]:
        """Standard normal inputs with `more` tokens than the case says; those of `example_inputs`, if any."""
        rng, n = case.rng(), case.t + more
        example = getattr(self.home, "example_inputs", None)
        if example is not None:
            found = example(replace(case, t=n))
            return tuple(v.astype(dtype) if v.dtype.kind == "f" else v for v in found)
        if self.kind == "attention_function":
            return tuple(
                Tensor(rng.standard_normal((case.b, case.h, n, case.d)).astype(dtype)) for _ in range(3)
            )
        grid = (n, case.w) if self.axes == 2 else (n,)
        return (Tensor(rng.standard_normal((case.b, *grid, self.width or case.dim)).astype(dtype)),)


def subject(
    variant: Any,
    *,
    kind: str | None = None,
    claims: Iterable[str] = (),
    reference: Any = None,
    grid: str | None = None,
) -> Subject:
    """Prepare a variant for the checks.

    Args:
        variant: a name of the catalogue, a Module class, a Module, a factory, or f(q, k, v, mask=None).
            Classes and factories are called with those keywords of dim, heads, seed, dtype that they take.
        kind: one of `KINDS`. Needed unless the variant has a card.
        claims: properties that must hold, beside those on the card.
        reference: anything that `variant` may be; outputs and gradients must equal its own. The state of the
            variant is loaded into it first. For a function, a name is that of an operation of `minitf.ops`.
        grid: one of `GRIDS`, "2d" for images (B, rows, columns, D); that of the card, or "1d", if left out.

    Raises:
        UsageError: unknown kind or claim, or something that cannot be built.
        UnknownVariantError: no such name in the catalogue.
    """
    card, cls = _card(variant)
    if kind is None and card is None:
        raise UsageError(f"{name_of(variant)} has no card: say kind=, one of: {', '.join(KINDS)}")
    if isinstance(claims, str):
        raise UsageError(f"claims is a list of names: claims=[{claims!r}]")
    kind = CATALOGUE_KINDS.get(kind or card.kind, kind or card.kind)
    known("kind", kind, KINDS)
    grid = known("grid", grid or (card.grid if card else "1d"), GRIDS)
    wanted = tuple(known("claim", claim, CLAIMS) for claim in claims)
    properties = [p for p in (card.properties if card else ()) if p in CLAIMS]
    every = frozenset(properties) | frozenset(wanted) | _implied(card, kind)
    line, expression = code_of(variant)
    other_line, other_expression = code_of(reference)
    options = [f"kind={kind!r}"] if card is None else []
    options += [f"claims={wanted!r}"] if wanted else []
    options += [f"grid={grid!r}"] if card is None and grid != "1d" else []
    if reference is not None:
        options.append(f"reference={other_expression}")
        # A comment ends its line, so it comes last.
        line = "; ".join(sorted({line, other_line}, key=lambda words: words.startswith("#")))
    code = (line, f"subject({', '.join([expression, *options])})")
    if kind == "attention_function":
        if not callable(variant):
            raise UsageError(f"an attention_function is called as f(q, k, v); {variant!r} cannot be")
        other = _function_reference(reference, every)
        return Subject(
            name_of(variant),
            kind,
            every,
            lambda: variant,
            frozenset(),
            None,
            grid,
            card,
            frozenset(parameters_of(variant)),
            variant,
            other,
            code,
        )
    make, accepts, width = builder_of(variant, cls)
    other = None if reference is None else subject(reference, kind=kind)
    one = Subject(
        name_of(variant), kind, every, make, accepts, width, grid, card, frozenset(), cls, other, code
    )
    if cls is None:
        # What a factory makes is known once it has made one.
        layer = one.layer(Case())
        cls = type(layer) if isinstance(layer, Module) else None
        forward = inherited(cls, "forward") if cls else parameters_of(layer)
    else:
        forward = inherited(cls, "forward")
    # A block hands its `options` on to its mixer.
    keywords = {*forward, *(["mask"] if kind == "block" and "options" in forward else [])}
    if kind == "token_mixer" and hasattr(cls, "example_inputs"):
        # Its other inputs have tokens of their own.
        one = replace(one, kind="operation")
    if kind == "operation" and card is not None and not hasattr(cls, "example_inputs"):
        one = replace(one, kind="procedure")
    return replace(one, keywords=frozenset(keywords), home=cls)


def _card(variant: Any) -> tuple[Any, Any]:
    """The card, if there is one, and the class, if it is one."""
    if isinstance(variant, str):
        cls = variant_class(variant)
    elif isinstance(variant, type):
        cls = variant
    else:
        cls = type(variant) if isinstance(variant, Module) else None
    return getattr(cls, "card", None), cls


def _implied(card: Any, kind: str) -> frozenset[str]:
    """What a card claims by its fields, for the kinds where that has a meaning."""
    if card is None or kind not in ("token_mixer", "block"):
        return frozenset()
    causal = card.causal and "causal_to_rounding" not in card.properties
    return frozenset([*(["causal"] if causal else []), *(["streams"] if card.streams else [])])


def _function_reference(reference: Any, claims: frozenset[str]) -> Subject | None:
    if reference is None:
        return None
    if isinstance(reference, str):
        operations = [n for n in dir(ops) if {"q", "k", "v"} <= set(_arguments(getattr(ops, n)))]
        function = getattr(ops, known("reference", reference, operations))
        if "causal" in claims:
            function = functools.partial(function, causal=True)
        reference = function
    return subject(reference, kind="attention_function")


def _arguments(f: Any) -> Iterable[str]:
    return parameters_of(f) if inspect.isfunction(f) else ()
