"""Makes the catalogue's index by reading the literal cards in the source, without importing anything.

Run `python -m minitf.catalogue.generate` after adding or changing a card.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

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


def literal(node: ast.expr) -> Any:
    """The value of a literal expression, in which calls such as Paper(...) are lists of their arguments."""
    if isinstance(node, ast.Call):
        return [literal(a) for a in node.args]
    if isinstance(node, ast.Tuple | ast.List):
        return [literal(e) for e in node.elts]
    if isinstance(node, ast.Dict):
        return {literal(k): literal(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
    return ast.literal_eval(node)


def read_cards(path: Path, package: Path = PACKAGE) -> dict[str, dict[str, Any]]:
    """The cards in one file: every class with `card = NAME`, where NAME = Card(...) stands in the file.

    Raises:
        ValueError: a card that is not literal; the message names file and line.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    cards: dict[str, dict[str, Any]] = {}
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign) else None
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "Card":
            target = node.targets[0]  # type: ignore[attr-defined]
            try:
                cards[target.id] = {str(k.arg): literal(k.value) for k in value.keywords}
            except ValueError as error:
                raise ValueError(f"{path.name}:{node.lineno}: a card must be literal: {error}") from error
    module = ".".join(("minitf", *path.relative_to(package).with_suffix("").parts))
    entries = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "card":
                    card = cards[line.value.id]  # type: ignore[attr-defined]
                    for optional, nothing in (("aliases", {}), ("expected_failures", {}), ("parity", ())):
                        card.setdefault(optional, nothing)
                    card["papers"] = [
                        dict(zip(("title", "arxiv", "year"), p, strict=True)) for p in card["papers"]
                    ]
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
    return json.dumps(dict(sorted(entries.items())), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    INDEX_FILE.write_text(generate(), encoding="utf-8")
    print(f"{INDEX_FILE.name}: {len(json.loads(generate()))} variants")
