"""What every variant must do: keep its card true, and pass every check that applies to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import minitf as mt
from minitf.testing import parametrize_with_checks

ENTRIES = mt.catalogue.find()
NAMES = [e.name for e in ENTRIES]


# A sample of cases, of every variant: `minitf check NAME` draws more.
@parametrize_with_checks(NAMES, examples=8)
def test_check(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("entry", ENTRIES, ids=NAMES)
def test_card_is_complete(entry: mt.catalogue.Entry) -> None:
    assert len(entry.identities()) >= 2, f"{entry.name} needs at least two identities"
    cls = entry.load()
    assert cls.card == entry.card, (
        f"the index does not agree with the card of {entry.name}: run minitf.catalogue.generate"
    )
    assert entry.card.streams == hasattr(cls, "step"), (
        f"{entry.name}: streams and the step method must go together"
    )
    source = entry.source()
    assert "Source:" in entry.doc(), f"the docstring of {entry.name} names no source"
    definition = source.split("@identity(")[0].count("\n")
    assert definition <= 270, (
        f"{entry.name}: {definition} lines before its identities are too many for one sitting"
    )
