"""The registry and the catalogue: the index is current, names are found, imports stay on demand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import minitf as mt
from minitf.catalogue import generate as indexer
from minitf.registry import UnknownVariantError, resolve


def test_the_index_is_current() -> None:
    assert indexer.generate() == indexer.INDEX_FILE.read_text(encoding="utf-8"), (
        "cards and index differ: run `python -m minitf.catalogue.generate`"
    )


def test_find_and_getitem() -> None:
    assert mt.catalogue["swiglu"].name == "glu_ffn"
    assert "softmax" in mt.catalogue and "nothing" not in mt.catalogue
    assert [e.name for e in mt.catalogue.find(kind="ffn", family="gated")] == ["glu_ffn"]
    assert {e.name for e in mt.catalogue.find("*norm*", kind="block")} == {
        "pre_norm",
        "post_norm",
        "peri_norm",
    }
    assert len(mt.catalogue.table()) == len(mt.catalogue)
    json.dumps(mt.catalogue.table())


def test_unknown_names_suggest_the_closest() -> None:
    with pytest.raises(UnknownVariantError, match="softmax_attention"):
        mt.build("softmax_atention", 8)
    with pytest.raises(UnknownVariantError, match="is of kind 'ffn'"):
        resolve("swiglu", ("attention",))
    with pytest.raises(TypeError, match=r"it takes: .*hidden"):
        mt.build("swiglu", 8, hiden=3)
    with pytest.raises(ValueError, match="positive integer"):
        mt.build("swiglu", 0)


def test_build_fits_small_widths() -> None:
    for dim in (1, 2, 6, 9):
        layer = mt.build("softmax_attention", dim)
        assert layer(mt.zeros((1, 3, dim))).shape == (1, 3, dim)


def test_aliases_set_options() -> None:
    assert mt.build("mqa", 8, heads=4).kv_heads == 1
    assert mt.build("gelu_tanh", 8).approximate == "tanh"


def test_nothing_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, minitf as mt; early = [m for m in sys.modules if m.startswith('minitf.')];"
        "rooms = ('attention.softmax', 'ffn', 'blocks', 'models', 'train');"
        "assert not any(r in m for m in early for r in rooms), early;"
        "assert not {'numba', 'cupy', 'matplotlib', 'rich', 'hypothesis', 'safetensors'} & set(sys.modules);"
        "mt.build('swiglu', 8);"
        "assert 'minitf.ffn.glu_ffn' in sys.modules and 'minitf.ffn.relu_ffn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rooms_import_only_what_stands_above_them() -> None:
    order = (
        "engine ops nn attention mixers ffn tokens blocks compress adapt interpret decode models tasks train "
        "distributed testing catalogue viz commands"
    )
    rank = {room: i for i, room in enumerate(order.split())}
    package = Path(mt.__file__).parent
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0]
        if room not in rank:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("minitf."):
                other = words[1].split(".")[1]
                if other in rank:
                    assert rank[other] <= rank[room], (
                        f"{path.relative_to(package)} imports {other}, which stands below it"
                    )


def test_cards_must_be_literal(tmp_path: Path) -> None:
    (tmp_path / "ffn").mkdir()
    file = tmp_path / "ffn" / "bad.py"
    file.write_text("NAME = 'x'\nCARD = Card(name=NAME)\nclass A:\n    card = CARD\n")
    with pytest.raises(ValueError, match=r"bad.py:2: a card must be literal"):
        indexer.generate(tmp_path)


def test_names_are_unique(tmp_path: Path) -> None:
    (tmp_path / "ffn").mkdir()
    card = "CARD = Card(name='x', papers=(Paper('a', 'b', 1),))\nclass A:\n    card = CARD\n"
    (tmp_path / "ffn" / "a.py").write_text(card)
    (tmp_path / "ffn" / "b.py").write_text(card)
    with pytest.raises(ValueError, match="already belongs to x"):
        indexer.generate(tmp_path)
