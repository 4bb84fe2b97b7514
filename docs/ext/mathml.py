"""Mathematics as MathML, made when the site is built: a page needs no script and nothing from outside."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)

# Environments that the converter does not know, and what means the same.
SAME = {
    "aligned": "split",
    "align": "align*",
    "equation": "equation*",
    "gather": "gathered",
    "gather*": "gathered",
}
# What it knows. It passes over the name of any other and loses the layout without a word.
KNOWN = {
    "split", "align*", "equation*", "array", "matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix", "Vmatrix",
    "smallmatrix", "cases", "gathered",
}  # fmt: skip
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


class MathError(ValueError):
    """An equation that cannot be converted; the message says why."""


def mathml(latex: str, block: bool = False) -> str:
    """An equation as a MathML element.

    The converter leaves what it does not know in its result, and ends what is not complete. These are errors
    here.

    Raises:
        MathError: unknown commands or environments, braces without their partner, and what else it refuses.
    """
    latex = re.sub(
        r"\\(begin|end)\{([a-z]+\*?)\}", lambda m: rf"\{m[1]}{{{SAME.get(m[2], m[2])}}}", latex.strip()
    )
    for name in re.findall(r"\\begin\{([^}]*)\}", latex):
        if name not in KNOWN:
            raise MathError(f"the environment {name!r} is not known")
    # Lines in the middle are a table of one column.
    latex = latex.replace(r"\begin{gathered}", r"\begin{array}{c}").replace(r"\end{gathered}", r"\end{array}")
    depth = 0
    for mark in BRACES.findall(latex):
        depth += {"{": 1, "}": -1}.get(mark, 0)
        if depth < 0:
            break
    if depth:
        raise MathError("a brace has no partner")
    try:
        found = convert(latex, display="block" if block else "inline")
    except Exception as error:
        raise MathError(f"{type(error).__name__} {error}".strip()) from error
    if strange := re.search(r"<m[a-z]+>[^<]*(\\[A-Za-z]+|&(?!#)|\$)[^<]*</m", found):
        raise MathError(f"{strange[1]!r} is not understood here")
    return found


def element(self: Any, node: nodes.Element, block: bool) -> str:
    """The MathML of a node, or a warning that names the equation and its place, and its source as code."""
    latex = node.astext()
    try:
        return mathml(latex, block)
    except MathError as error:
        logger.warning("equation %r: %s", latex, error, location=node, type="mathml")
        return f"<code>{self.encode(latex)}</code>"


def inline_math(self: Any, node: nodes.math) -> None:
    self.body.append(f'<span class="equation">{element(self, node, block=False)}</span>')
    raise nodes.SkipNode


def block_math(self: Any, node: nodes.math_block) -> None:
    # The box scrolls where the equation is wider than the page. The theme's own class sets it to the right.
    self.body.append(self.starttag(node, "div", CLASS="equation"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})</span>')
    self.body.append(f"{element(self, node, block=True)}</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
