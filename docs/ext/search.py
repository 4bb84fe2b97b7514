"""Two repairs of the search, which finds variants by their names and papers by their numbers in the index.

An entry of the index leads to an empty element. The search takes the words beside a result from the element
that it leads to, and fails on an empty one with an error in the console: here entries lead to their section.
A build that reads only the changed pages forgets the entries of all others: they are given back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform


class IndexSections(SphinxTransform):
    """Changes the targets of the entries before the index is gathered (850)."""

    default_priority = 800

    def apply(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(addnodes.index)):
            section = node.parent
            while section is not None and not isinstance(section, nodes.section):
                section = section.parent
            if section is not None:
                node["entries"] = [
                    (kind, words, section["ids"][0] if target.startswith("index-") else target, main, key)
                    for kind, words, target, main, key in node["entries"]
                ]


def give_back(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Before the search index is written: the entries of pages that were not read anew. Adds no page."""
    indexer = getattr(app.builder, "indexer", None)
    if indexer is not None:
        for page, entries in app.env.get_domain("index").data["entries"].items():
            found = sorted({(words, target, main) for _, words, target, main, _ in entries})
            indexer._index_entries.setdefault(page, found)
    return iter(())


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(IndexSections)
    app.connect("html-collect-pages", give_back)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
