"""The extensions of the site by themselves: docstrings as markup, equations as MathML, notebooks."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from html import unescape
from io import StringIO

import docutils.core
import nbformat
import pytest
from ext import docstrings, notebooks
from ext.mathml import MathError, mathml
from ext.packages import packages
from markdown_it import MarkdownIt

import minitf as mt

DOC = """A title: in one line.

    y_i = |x_i| * W^2        *not* emphasis, `not` code
        deeper

    second part

Prose with `code`, |bars|, under_scores_, *stars*, $x$, <tags> and arXiv:1706.03762,
over two lines:
    "a"   one way
    "b"   another
Cost: 4 N D^2.
Differs from the paper: nothing.

Args:
    x, y: first line
        and second: with a colon.
    z: (B, N)

Raises:
    ValueError: never.
"""


def test_blocks_of_a_docstring() -> None:
    title, code, prose, list_, cost, differs, args, raises = docstrings.blocks(DOC)
    assert title == docstrings.Text("A title: in one line.")
    assert isinstance(code, docstrings.Code) and code.text.splitlines()[1] == "    deeper"
    assert code.text.endswith("second part")
    assert isinstance(prose, docstrings.Text) and prose.words.endswith("arXiv:1706.03762, over two lines:")
    assert isinstance(list_, docstrings.Code) and len(list_.text.splitlines()) == 2
    assert cost == docstrings.Text("4 N D^2.", "Cost")
    assert differs == docstrings.Text("nothing.", "Differs from the paper")
    assert args == docstrings.Section(
        "Args", (("x, y", "first line and second: with a colon."), ("z", "(B, N)"))
    )
    assert raises == docstrings.Section("Raises", (("ValueError", "never."),))


def shown(html: str) -> str:
    """The text of some HTML, without white space."""
    return re.sub(r"\s", "", unescape(re.sub(r"<[^>]*>", "", html)))


def as_markdown(doc: str) -> str:
    """What a reader sees of a docstring on a page in Markdown."""
    return shown(MarkdownIt().render(docstrings.to_markdown(docstrings.blocks(doc))))


def as_rst(doc: str) -> str:
    """What a reader sees of a docstring on a page in reStructuredText; a warning is an error."""
    said = StringIO()
    settings = {"warning_stream": said, "report_level": 1, "syntax_highlight": "none"}
    text = docstrings.to_rst(docstrings.blocks(doc))
    html = docutils.core.publish_parts(text, writer="html5", settings_overrides=settings)["body"]
    assert not said.getvalue(), said.getvalue()
    return shown(html)


@pytest.mark.parametrize("view", [as_markdown, as_rst])
def test_nothing_of_a_docstring_is_lost_or_read_as_markup(view: Callable[[str], str]) -> None:
    docs = [DOC, *(entry.doc() for entry in mt.catalogue.find())]
    docs += [inspect.getdoc(public.value) or "" for package in packages() for public in package.own]
    assert len(docs) > 300
    for doc in docs:
        found = view(doc)
        for line in doc.splitlines():
            wanted = re.sub(r"[\s]", "", line)
            # Only backticks mean something in prose; in equations they stand as they are.
            assert wanted in found or wanted.replace("`", "") in found, f"lost: {line!r}"


@pytest.mark.parametrize(
    ("latex", "part"),
    [
        (r"\frac{dy}{dx}", "<mfrac>"),
        (r"\sqrt{d}", "<msqrt>"),
        (r"x_i^2", "<msubsup>"),
        (r"\begin{aligned} a &= b \\ c &= d \end{aligned}", "<mtable"),
        (r"\begin{cases} 1 & x > 0 \\ 0 & \text{else} \end{cases}", "<mtext>else</mtext>"),
        (r"\operatorname{softmax}(x)", "softmax"),
        (r"\left\lVert x \right\rVert", "<mi>x</mi>"),
        (r"a < b \& \{c\}", "&#x0003C;"),
    ],
)
def test_equations_become_mathml(latex: str, part: str) -> None:
    for block in (False, True):
        found = mathml(latex, block)
        assert found.startswith("<math") and part in found
        assert f'display="{"block" if block else "inline"}"' in found


@pytest.mark.parametrize(
    "latex",
    [
        r"\nonsense{x}",
        r"\frac{1",
        r"x}",
        r"a & b",
        r"\begin{nonsense} x \end{nonsense}",
        r"x^",
        r"\text{if $x$}",
    ],
)
def test_equations_that_cannot_be_converted_are_errors(latex: str) -> None:
    with pytest.raises(MathError):
        mathml(latex)


def test_pictures_of_notebooks_get_words() -> None:
    picture = nbformat.v4.new_output("display_data", data={"image/png": "AAAA"})
    own = {"mystnb": {"image": {"alt": "my own words"}}}
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Title\nFirst *words* of $x$. More words."),
            nbformat.v4.new_code_cell("plot()", outputs=[picture]),
            nbformat.v4.new_code_cell("plot()", outputs=[picture], metadata=own),
            nbformat.v4.new_code_cell("1"),
        ]
    )
    notebooks.describe_pictures(nb)
    alts = [cell.metadata.get("mystnb", {}).get("image", {}).get("alt") for cell in nb.cells]
    assert alts == [None, "Picture: Title. First words of x.", "my own words", None]
