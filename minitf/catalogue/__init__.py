"""Finding variants: `mt.catalogue["swiglu"]`, `mt.catalogue.find("*norm*", kind="block")`, `table()`."""

from __future__ import annotations

import fnmatch
import inspect
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from minitf.nn import Card, Identity, Paper, identities
from minitf.registry import index, names, resolve, variant_class


@dataclass(frozen=True)
class Entry:
    """One variant: its card, and where it is defined. Nothing is imported until the class is asked for."""

    card: Card
    module: str
    class_name: str

    @property
    def name(self) -> str:
        """The card's name."""
        return self.card.name

    def load(self) -> Any:
        """The class."""
        return variant_class(self.name)

    def source(self) -> str:
        """The text of the file that defines the variant."""
        return inspect.getsource(inspect.getmodule(self.load()) or self.load())

    def doc(self) -> str:
        """The file's docstring: the equation, the shapes, the source."""
        return inspect.getdoc(inspect.getmodule(self.load())) or ""

    def identities(self) -> list[Identity]:
        """What must hold, as pairs of computations."""
        return identities(self.load())


def get(name: str) -> Entry:
    """The entry of a name or alias. Raises UnknownVariantError with the closest names."""
    raw = dict(index()[resolve(name)[0]])
    module, class_name = raw.pop("module"), raw.pop("class")
    papers = tuple(Paper(**paper) for paper in raw.pop("papers"))
    properties, parity = tuple(raw.pop("properties")), tuple(raw.pop("parity", ()))
    return Entry(Card(papers=papers, properties=properties, parity=parity, **raw), module, class_name)


def find(
    pattern: str = "*",
    *,
    kind: str | None = None,
    family: str | None = None,
    causal: bool | None = None,
    streams: bool | None = None,
    grid: str | None = None,
    parity: bool | None = None,
) -> list[Entry]:
    """The entries that fit, sorted by name. What is left out does not matter.

    Args:
        pattern: for the name, an alias or the title, in any case: "norm" anywhere in it, or one of the shell,
            "*_norm".
        kind, family, grid: as on the card: "ffn", "gated", "2d".
        causal, streams: whether the variant can.
        parity: whether its values were compared with an independent implementation.

    Raises:
        ValueError: a kind, family or grid that no card has; the message lists those there are.
    """
    wanted = {"kind": kind, "family": family, "causal": causal, "streams": streams, "grid": grid}
    for key in ("kind", "family", "grid"):
        known = sorted({card[key] for card in index().values()})
        if wanted[key] is not None and wanted[key] not in known:
            raise ValueError(f"{key}={wanted[key]!r} is none of: {', '.join(known)}")
    pattern = pattern.lower() if set(pattern) & set("*?[") else f"*{pattern.lower()}*"
    found = []
    for name, card in index().items():
        texts = (name, *card["aliases"], card["title"].lower())
        if (
            any(fnmatch.fnmatchcase(text, pattern) for text in texts)
            and all(value is None or card[key] == value for key, value in wanted.items())
            and parity in (None, bool(card.get("parity")))
        ):
            found.append(get(name))
    return found


def table(entries: list[Entry] | None = None) -> list[dict[str, Any]]:
    """Rows for people: name, title, kind, family, year, causal, streams, grid, complexity, parity."""
    return [
        {
            "name": e.name,
            "title": e.card.title,
            "kind": e.card.kind,
            "family": e.card.family,
            "year": e.card.papers[0].year,
            "causal": e.card.causal,
            "streams": e.card.streams,
            "grid": e.card.grid,
            "complexity": e.card.complexity,
            "parity": list(e.card.parity),
        }
        for e in (find() if entries is None else entries)
    ]


class _Catalogue(ModuleType):
    """Lets the module itself be indexed, counted and walked."""

    def __getitem__(self, name: str) -> Entry:
        return get(name)

    def __len__(self) -> int:
        return len(index())

    def __iter__(self) -> Any:
        return iter(find())

    def __contains__(self, name: str) -> bool:
        return name in names()


sys.modules[__name__].__class__ = _Catalogue
