"""Docstrings on the pages about the API: plain text, which autodoc takes for reStructuredText."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from .docstrings import blocks, to_rst


def rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Replace the lines of a docstring, in place."""
    lines[:] = to_rst(blocks("\n".join(lines))).splitlines()


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what other libraries put into our classes, such as matplotlib's `set`."""
    return None if getattr(obj, "__module__", "minitf").startswith("minitf") else True


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
