"""Makes the catalogue's index by reading the literal cards in the source, without importing any variant.

Run `python -m minitf.catalogue.generate` after adding or changing a card.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from minitf.nn.card import Card

PACKAGE = Path(__file__).parent.parent
# The rooms that hold variants.
ROOMS = (
    "nn/norms",
    "nn/positions",
    "attention",
    "mixers",
    "ffn",
    "tokens",
    "blocks",
    "compress",
    "adapt",
    "decode",
)
INDEX_FILE = Path(__file__).parent / "_index.json"
# The fields of a card, and what those that may be left out are then.
FIELDS = [field.name for field in dataclasses.fields(Card)]
OPTIONAL: dict[str, Any] = {"aliases": {}, "expected_failures": {}, "parity": []}


def literal(node: ast.expr) -> Any:
    """The value of a literal expression, in which calls such as Paper(...) are lists of their arguments."""
    if isinstance(node, ast.Call):
        if node.keywords:
            raise ValueError(f"{ast.unparse(node)}: give its arguments without keywords")
        return [literal(a) for a in node.args]
    if isinstance(node, ast.Tuple | ast.List):
        return [literal(e) for e in node.elts]
    if isinstance(node, ast.Dict):
        return {literal(k): literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    return ast.literal_eval(node)


def read_cards(path: Path, package: Path = PACKAGE) -> dict[str, dict[str, Any]]:
    """The cards in one file: every class with `card = NAME`, where NAME = Card(...) stands in the file.

    Raises:
        ValueError: a card that is not literal, has an unknown field, or is not there; the message names file
            and line.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    cards: dict[str, dict[str, Any]] = {}
    for node in tree.body:
        call = node.value if isinstance(node, ast.Assign) else None
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Card":
            target = node.targets[0]  # type: ignore[attr-defined]
            where = f"{path.name}:{node.lineno}"
            try:
                card = {str(k.arg): literal(k.value) for k in call.keywords}
            except ValueError as error:
                raise ValueError(f"{where}: a card must be literal: {error}") from error
            unknown = [key for key in card if key not in FIELDS]
            if unknown:
                raise ValueError(f"{where}: a card has no {', '.join(unknown)}; it has: {', '.join(FIELDS)}")
            for key, of in (("papers", list), ("properties", str), ("parity", str)):
                # Without its comma, ("causal") is a word, and (Paper(...)) is a paper.
                value = card.get(key, [])
                if isinstance(value, str) or not all(isinstance(v, of) for v in value):
                    raise ValueError(f"{where}: {key} must be a tuple, such as (one,)")
            card["papers"] = [dict(zip(("title", "arxiv", "year"), p, strict=True)) for p in card["papers"]]
            cards[target.id] = {
                key: v for key in FIELDS if (v := card.get(key, OPTIONAL.get(key))) is not None
            }
    module = ".".join(("minitf", *path.relative_to(package).with_suffix("").parts))
    entries = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "card":
                    named = ast.unparse(line.value)
                    if named not in cards:
                        raise ValueError(
                            f"{path.name}:{line.lineno}: there is no {named} = Card(...) in this file"
                        )
                    card = cards[named]
                    entries[card["name"]] = {**card, "module": module, "class": node.name}
    return entries


def generate(package: Path = PACKAGE) -> str:
    """The text of the index: a JSON object from variant name to card, module and class, sorted by name.

    Raises:
        ValueError: two variants with one name or alias.
    """
    entries: dict[str, dict[str, Any]] = {}
    taken: dict[str, str] = {}
    for room in ROOMS:
        for path in sorted((package / room).glob("*.py")):
            for name, entry in read_cards(path, package).items():
                for key in (name, *entry["aliases"]):
                    if key in taken:
                        raise ValueError(f"{path.name}: the name {key!r} already belongs to {taken[key]}")
                    taken[key] = name
                entries[name] = entry
    lines = [f"{json.dumps(name)}: {compact(entry)}" for name, entry in sorted(entries.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def compact(entry: dict[str, Any]) -> str:
    """One line of JSON: short to load, and a changed card is one changed line."""
    return json.dumps(entry, ensure_ascii=False, separators=(",", ":"))


if __name__ == "__main__":
    text = generate()
    # Whole or not at all: others may be reading it.
    half = INDEX_FILE.with_suffix(f".{os.getpid()}.tmp")
    half.write_text(text, encoding="utf-8")
    half.replace(INDEX_FILE)
    print(f"{INDEX_FILE.name}: {len(json.loads(text))} variants")
