"""The registry and the catalogue: the index is current, names are found, imports stay on demand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minitf as mt
from minitf import registry
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
    assert {e.name for e in mt.catalogue.find("*_norm", kind="block")} == {
        "pre_norm",
        "post_norm",
        "peri_norm",
    }
    assert mt.catalogue.find("*NORM*", kind="block") == mt.catalogue.find("*norm*", kind="block")
    assert mt.catalogue.find("norm") == mt.catalogue.find("*norm*"), "as `minitf list norm` does"
    assert [e.name for e in mt.catalogue.find("swiglu")] == ["glu_ffn"]
    for key in ("kind", "family", "grid"):
        with pytest.raises(ValueError, match=f"{key}='attn' is none of: "):
            mt.catalogue.find(**{key: "attn"})
    assert len(mt.catalogue.table()) == len(mt.catalogue)
    json.dumps(mt.catalogue.table())


def test_parity_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, *_ = cards = {k: dict(v) for k, v in registry.index().items()}
    for card in cards.values():
        card["parity"] = []
    cards[one]["parity"] = ["torch"]
    # An index from before there was such a thing
    del cards[other]["parity"]
    monkeypatch.setattr(mt.catalogue, "index", lambda: cards)
    assert [e.name for e in mt.catalogue.find(parity=True)] == [one]
    without = mt.catalogue.find(parity=False)
    assert len(without) == len(cards) - 1 and other in {e.name for e in without}
    assert len(mt.catalogue.find(parity=None)) == len(cards)
    assert [row["parity"] for row in mt.catalogue.table() if row["name"] in (one, other)] == [["torch"], []]


def test_unknown_names_suggest_the_closest() -> None:
    with pytest.raises(UnknownVariantError, match="softmax_attention"):
        mt.build("softmax_atention", 8)
    with pytest.raises(UnknownVariantError, match="is of kind 'ffn'"):
        resolve("swiglu", ("attention",))
    with pytest.raises(UnknownVariantError, match="the closest are: softmax_attention, "):
        mt.build("Softmax-Attentoin", 8)


def test_closest_are_three() -> None:
    for name in ("", "x", "softmx", "a name that is like no other"):
        with pytest.raises(UnknownVariantError) as error:
            mt.build(name, 8)
        close = str(error.value).split("the closest are: ")[1].split(". ")[0].split(", ")
        assert len(set(close)) == 3 and all(c in mt.catalogue for c in close), f"{name!r}: {close}"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(hiden=3), TypeError, r"does not take hiden; it takes: heads, kv_heads, "),
        (dict(heads="four"), TypeError, r"heads must be int, not 'four' \(str\)"),
        (dict(heads=2.0), TypeError, "heads must be int, not 2.0"),
        (dict(heads=True), TypeError, "heads must be int, not True"),
        (dict(heads=0), ValueError, "heads must be a positive integer, not 0"),
        (dict(heads=3), ValueError, "must divide"),
        (dict(causal="yes"), TypeError, "causal must be bool, not 'yes'"),
        (dict(kv_heads="2"), TypeError, "kv_heads must be int or None, not '2'"),
        (dict(dropout="x"), TypeError, "dropout must be float, not 'x'"),
        (dict(dropout=float("nan")), ValueError, "dropout must be a number, not NaN"),
        (dict(head_dim=0), ValueError, "head_dim must be at least 1, not 0"),
        (dict(kv_heads=-2), ValueError, "kv_heads must be at least 1, not -2"),
        (dict(dropout=2.0), ValueError, r"must be in \[0, 1\)"),
        (dict(seed=-1), ValueError, "seed must be 0 or more"),
        (dict(seed=None), ValueError, "seed must be 0 or more"),
        (dict(dtype="float33"), ValueError, "dtype must be one of: float16, float32, float64"),
        (dict(dtype="int32"), ValueError, "dtype must be one of"),
        (dict(position="rop"), ValueError, "choose one of: .*rope"),
    ],
)
def test_wrong_options_say_what_is_allowed(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mt.build("softmax_attention", 8, **options)


@pytest.mark.parametrize("dim", [0, -8, 8.0, "8", True, None])
def test_wrong_widths_say_what_is_allowed(dim: object) -> None:
    with pytest.raises(ValueError, match="dim must be a positive integer"):
        mt.build("swiglu", dim)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    options = dict(heads=np.int64(2), dropout=np.float32(0.5), causal=np.bool_(False), seed=np.uint32(3))
    layer = mt.build("softmax_attention", np.int32(8), dtype=np.float64, **options).eval()  # type: ignore[arg-type]
    assert layer(mt.zeros((1, 3, 8), dtype="float64")).shape == (1, 3, 8)
    mt.build("softmax_attention", 8, dropout=0, seed=np.random.default_rng(0))


def test_options_that_must_be_given_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Needy:
        def __init__(self, dim: int, *, rank: int, scale: float = 1.0):
            self.rank = rank

    monkeypatch.setattr(registry, "variant_class", lambda name: Needy)
    with pytest.raises(TypeError, match="relu_ffn needs rank; it takes: rank, scale"):
        mt.build("relu_ffn", 8)
    assert mt.build("relu_ffn", 8, rank=2).rank == 2


def test_hosts_may_always_give_heads_and_seed() -> None:
    mt.build("layernorm", 8, heads=3, seed=0)
    for key in ("grid", "context", "causal"):
        with pytest.raises(TypeError, match=f"does not take {key}"):
            mt.build("layernorm", 8, **{key: 4})


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


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("name=NAME", "2: a card must be literal"),
        ("name='x', papers=(Paper(title='a', arxiv='', year=1),)", "2: .* without keywords"),
        ("name='x', papers=(Paper('a', '', 1))", r"2: papers must be a tuple"),
        ("name='x', papers=(), properties=('causal')", r"2: properties must be a tuple"),
        ("name='x', papers=(), propertys=()", "2: a card has no propertys; it has: name, "),
    ],
)
def test_wrong_cards_are_named(tmp_path: Path, card: str, message: str) -> None:
    (tmp_path / "ffn").mkdir()
    (tmp_path / "ffn" / "bad.py").write_text(f"NAME = 'x'\nCARD = Card({card})\nclass A:\n    card = CARD\n")
    with pytest.raises(ValueError, match=f"bad.py:{message}"):
        indexer.generate(tmp_path)


def test_cards_must_stand_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "ffn").mkdir()
    (tmp_path / "ffn" / "bad.py").write_text("from a import CARD\nclass A:\n    card = CARD\n")
    with pytest.raises(ValueError, match=r"bad.py:3: there is no CARD = Card\(...\)"):
        indexer.generate(tmp_path)


def test_fields_that_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "ffn").mkdir()
    (tmp_path / "ffn" / "two.py").write_text(
        "A = Card(name='a', papers=())\n"
        "B = Card(name='b', papers=(), parity=('torch',), expected_failures={'x': 'y'})\n"
        "class P:\n    card = A\nclass Q:\n    card = B\n"
    )
    index = json.loads(indexer.generate(tmp_path))
    assert index["a"]["parity"] == [] and index["a"]["expected_failures"] == {} == index["a"]["aliases"]
    assert index["b"]["parity"] == ["torch"] and index["b"]["expected_failures"] == {"x": "y"}
    lines = indexer.generate(tmp_path).splitlines()
    assert len(lines) == 4, (
        "one line for each variant, so that the index is short and changes are easy to read"
    )


def test_names_are_unique(tmp_path: Path) -> None:
    (tmp_path / "ffn").mkdir()
    card = "CARD = Card(name='x', papers=(Paper('a', 'b', 1),))\nclass A:\n    card = CARD\n"
    (tmp_path / "ffn" / "a.py").write_text(card)
    (tmp_path / "ffn" / "b.py").write_text(card)
    with pytest.raises(ValueError, match="already belongs to x"):
        indexer.generate(tmp_path)
