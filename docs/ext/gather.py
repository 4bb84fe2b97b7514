"""What the pages tell about variants, lessons and papers; not how they tell it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import minitf as mt
from minitf.catalogue import Entry
from minitf.commands.show import options
from minitf.course import Lesson, lessons
from minitf.nn import Card, Identity, Paper
from minitf.testing import CHECKS

from .docstrings import Block, Text, blocks

# Properties that turn on a check of another name, or say how a check must be read.
MEANINGS = {
    "chunked": "Cut into chunks of any size, the sequence gives the same outputs and gradients.",
    "key_masks": "A mask hides keys, the same for every query: checks that hide single pairs do not apply.",
    "fixed_grid": "Its weights belong to one grid of tokens: checks with other lengths do not apply.",
}
HOW = {"to_rounding": "Up to rounding.", "without_causal": "When it is built with `causal=False`."}


@dataclass(frozen=True)
class Variant:
    """All that the page about a variant tells. neighbours: names of its family. lessons: that teach it."""

    entry: Entry
    neighbours: tuple[str, ...]
    lessons: tuple[Lesson, ...]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def card(self) -> Card:
        return self.entry.card

    @property
    def names(self) -> list[str]:
        """Its name, and its aliases."""
        return [self.name, *self.card.aliases]

    @cached_property
    def doc(self) -> list[Block]:
        """The docstring of its file."""
        return blocks(self.entry.doc())

    @property
    def summary(self) -> str:
        """The first paragraph of its file."""
        first = self.doc[0]
        return first.words if isinstance(first, Text) else self.card.title

    @property
    def about(self) -> list[Block]:
        """The docstring of its class."""
        return blocks(self.entry.load().__doc__ or "")

    @property
    def options(self) -> list[dict[str, Any]]:
        return options(self.entry.load())

    @property
    def identities(self) -> list[Identity]:
        return self.entry.identities()

    @property
    def source(self) -> str:
        return self.entry.source()

    @property
    def path(self) -> str:
        """Its file in the repository."""
        return f"{self.entry.module.replace('.', '/')}.py"

    @property
    def properties(self) -> list[tuple[str, str]]:
        """Each of its properties, and what the check that it turns on asks."""
        return [(name, meaning(name)) for name in self.card.properties]

    @property
    def usage(self) -> str:
        """Three lines of Python that build it and call it."""
        return usage(self.entry)


def meaning(claim: str) -> str:
    """What a property promises, in a sentence or two."""
    if claim in MEANINGS:
        return MEANINGS[claim]
    # "causal_to_rounding" turns the check "causal" on.
    name = max((check for check in CHECKS if f"{claim}_".startswith(f"{check}_")), key=len)
    more = HOW[claim[len(name) + 1 :]] if claim != name else ""
    return f"{(CHECKS[name].__doc__ or '').splitlines()[0]} {more}".strip()


def usage(entry: Entry) -> str:
    """Three lines of Python that build a variant and call it."""
    cls, card, name = entry.load(), entry.card, entry.name
    takes = inspect.signature(cls).parameters
    heads = "heads=4, " if "heads" in takes else ""
    made, call = f'"{name}", dim=64, {heads}seed=0', "mt.zeros((1, 16, 64))"
    if card.kind == "decode":
        call = "target, draft, prompt_ids, tokens=32"
    elif card.kind == "position" and takes["dim"].default is inspect.Parameter.empty:
        made, call = f'"{name}", dim=64, seed=0', f"{call}, range(16)"
    elif card.kind == "position":
        # It acts inside attention.
        made = f'"softmax_attention", dim=64, heads=4, position="{name}", seed=0'
    elif hasattr(cls, "example_inputs"):
        made, call = f'{made}, dtype="float64"', "*layer.example_inputs(mt.nn.Case(t=8, w=8, h=4, d=16))"
    elif card.grid in ("2d", "nd"):
        call = "mt.zeros((1, 8, 8, 64))"
        made = made.replace("seed", "grid=(8, 8), seed") if "grid" in takes else made
    elif "grid" in takes:
        made = made.replace("seed", "grid=16, seed")
    return f"import minitf as mt\nlayer = mt.build({made})\ny = layer({call})"


def variants() -> list[Variant]:
    """All variants, by name."""
    entries, course = mt.catalogue.find(), lessons()
    found = []
    for entry in entries:
        card = entry.card
        near = (e.name for e in entries if (e.card.kind, e.card.family) == (card.kind, card.family))
        names = {entry.name, *card.aliases}
        taught = tuple(lesson for lesson in course if names & set(lesson.variants))
        found.append(Variant(entry, tuple(n for n in near if n != entry.name), taught))
    return found


def by_kind(found: Iterable[Variant]) -> dict[str, list[Variant]]:
    """The variants of each kind; the largest kind first."""
    kinds: dict[str, list[Variant]] = {}
    for variant in found:
        kinds.setdefault(variant.card.kind, []).append(variant)
    return dict(sorted(kinds.items(), key=lambda pair: (-len(pair[1]), pair[0])))


def key_of(paper: Paper) -> str:
    """A name for the place of a paper on its page: its arXiv number, or its title."""
    return "paper-" + (paper.arxiv or re.sub(r"[^a-z0-9]+", "-", paper.title.lower()).strip("-"))


def papers(found: Sequence[Variant]) -> list[tuple[Paper, list[Variant]]]:
    """Every paper of every card with the variants that implement it; the newest first, then by title."""
    every: dict[str, tuple[Paper, list[Variant]]] = {}
    for variant in found:
        for paper in variant.card.papers:
            every.setdefault(key_of(paper), (paper, []))[1].append(variant)
    return sorted(every.values(), key=lambda pair: (-pair[0].year, pair[0].title.lower()))
