"""The catalogue says truly what was compared with what: cards, frozen answers and tests belong together."""

from __future__ import annotations

import minitf as mt
from tests.oracles.oracle import FOLDER, load


def test_every_parity_on_a_card_has_frozen_answers() -> None:
    for entry in mt.catalogue.find(parity=True):
        assert (FOLDER / f"{entry.name}.npz").exists(), (
            f"{entry.name} claims parity, but has no answers frozen"
        )


def test_every_frozen_answer_is_compared() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("test_*.py"))
    makers = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("make_*.py"))
    for path in FOLDER.glob("*.npz"):
        assert f'"{path.stem}"' in tests, f"no test reads {path.name}"
        assert f'"{path.stem}"' in makers, f"no generator writes {path.name}"
        assert str(load(path.stem)["source"]), f"{path.name} does not say whose answers it holds"
        assert path.stat().st_size < 64 * 1024, f"{path.name} is too large to live here"
