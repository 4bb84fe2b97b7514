"""The pages of the site, read from their files: nothing is missing, broken, or from outside."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from ext import gather
from ext.packages import packages
from site_reader import every_page, outside, read, squeezed

import minitf as mt
from minitf.course import lessons
from minitf.testing import CLAIMS

ENTRIES = {entry.name: entry for entry in mt.catalogue.find()}


def test_build_says_no_warning(built: Path) -> None:
    log = (built / "log").read_text(encoding="utf-8")
    assert (built / "code").read_text(encoding="utf-8") == "0", log[-4000:]


def test_every_variant_has_a_page_with_all_it_should_tell(site: Path) -> None:
    for name, entry in ENTRIES.items():
        page = read(site / "variants" / f"{name}.html")
        assert name in page.title and entry.card.title in page.title, f"{name}: the title is {page.title!r}"
        before = squeezed(page.before)
        for words in (i.words for i in entry.identities()):
            assert squeezed(words) in before, f"{name}: the identity {words!r} is missing"
        for words in (*entry.card.parity, entry.card.basis, *entry.card.expected_failures.values()):
            assert squeezed(words) in before, f"{name}: {words!r} is missing"
        for claim in entry.card.properties:
            assert f"{claim}:" in page.before, f"{name}: the property {claim} is missing"
        for key in (entry.card.kind, entry.card.family, entry.card.complexity, *entry.card.aliases):
            assert squeezed(key) in before, f"{name}: {key!r} is missing"
        assert squeezed(entry.source()) in squeezed(page.source), f"{name}: the source code is not whole"


def test_pages_lose_no_line_of_a_docstring(site: Path) -> None:
    for name, entry in ENTRIES.items():
        # Without the source code, in which every line stands anyway.
        text = squeezed(read(site / "variants" / f"{name}.html").before)
        for line in f"{entry.doc()}\n{entry.load().__doc__ or ''}".splitlines():
            # A page sets "name: words" of an option as a list, with the same characters.
            assert squeezed(line) in text, f"{name}: a line of the docstring is missing: {line!r}"


def test_every_variant_has_a_picture_or_a_reason(site: Path) -> None:
    without = []
    for name in ENTRIES:
        page = read(site / "variants" / f"{name}.html")
        if not page.images:
            without.append(name)
            assert "There is no picture:" in page.before, f"{name}: neither a picture nor a reason"
    assert len(without) <= 0.15 * len(ENTRIES), f"too many variants without a picture: {without}"


def test_every_paper_leads_to_its_code(site: Path) -> None:
    page = read(site / "papers.html")
    text = squeezed(page.text)
    for name, entry in ENTRIES.items():
        assert f"variants/{name}.html#source-code" in page.links, f"papers: no link to the code of {name}"
        for paper in entry.card.papers:
            assert squeezed(paper.title) in text, f"{name}: {paper.title!r} is not among the papers"
            if paper.arxiv:
                assert f"https://arxiv.org/abs/{paper.arxiv}" in page.links, f"no link to {paper.arxiv}"
    years = re.findall(r"<h2>(\d{4})", (site / "papers.html").read_text(encoding="utf-8"))
    assert years and years == sorted(years, reverse=True), f"papers are not in the order of years: {years}"


def test_catalogue_lists_every_variant(site: Path) -> None:
    page = read(site / "catalogue.html")
    assert {f"variants/{name}.html" for name in ENTRIES} <= set(page.links)
    text = (site / "catalogue.html").read_text(encoding="utf-8")
    table = text[text.index("<table") : text.index("</table>")]
    assert table.count("<tr") == 1 + len(ENTRIES), "the table of the catalogue needs no script to be whole"


def test_every_public_name_is_described(site: Path) -> None:
    ids = set().union(*(page.ids for path, page in every_page(site).items() if path.parent.name == "api"))
    for package in packages():
        missing = [f"{public.home}.{public.name}" for public in package.names]
        missing = [name for name in missing if name not in ids]
        assert not missing, f"{package.name}: not described: {missing}"


def test_every_lesson_has_its_page_and_notebook(site: Path) -> None:
    for lesson in lessons():
        path = site / "lessons" / f"{lesson.name}.html"
        page = read(path)
        notebooks = [url for url in page.links if url.endswith(f"/{lesson.handed_out.name}")]
        assert notebooks, f"{lesson.name}: no link to the notebook that is handed out"
        given = (path.parent / unquote(notebooks[0])).resolve().read_bytes()
        assert given == lesson.handed_out.read_bytes(), f"{lesson.name}: another notebook is handed out"
        for name in lesson.variants:
            own = next(n for n, e in ENTRIES.items() if name in (n, *e.card.aliases))
            assert f"../variants/{own}.html" in page.links, f"{lesson.name}: no link to {name}"
            back = read(site / "variants" / f"{own}.html").links
            assert f"../lessons/{lesson.name}.html" in back, f"{own}: no link to {lesson.name}"


def test_mathematics_of_lessons_is_mathml(site: Path) -> None:
    found = 0
    for lesson in lessons():
        page = read(site / "lessons" / f"{lesson.name}.html")
        cells = nbformat.read(lesson.solved, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", prose, flags=re.DOTALL)
        expected = len(re.findall(r"\$\$.+?\$\$|(?<!\$)\$[^$]+\$(?!\$)", prose, re.DOTALL))
        assert page.equations >= expected, (
            f"{lesson.name}: {page.equations} of {expected} equations are MathML"
        )
        left = re.findall(r"\\[a-zA-Z]{2,}|\$[^$\n]+\$", page.prose)
        assert not left, f"{lesson.name}: mathematics that was not converted: {left[:5]}"
        found += page.equations
    assert found > 20, "there is hardly any mathematics in the lessons"


def test_every_internal_link_and_anchor_resolves(site: Path) -> None:
    pages = every_page(site)
    assert len(pages) > len(ENTRIES)
    for path, page in pages.items():
        for url in page.links:
            if outside(url):
                continue
            parts = urlsplit(url)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.relative_to(site)}: {url} leads nowhere"
            if parts.fragment and target.suffix == ".html":
                ids = read(site / target.relative_to(site.resolve())).ids if parts.path else page.ids
                assert unquote(parts.fragment) in ids, f"{path.relative_to(site)}: {url}: no such place"


def test_nothing_is_loaded_from_outside(site: Path) -> None:
    for path, page in every_page(site).items():
        for url in page.loaded:
            assert not outside(url), f"{path.relative_to(site)} loads {url}"
            if not url.startswith("data:"):
                file = path.parent / unquote(urlsplit(url).path)
                assert file.resolve().is_file(), f"{path.relative_to(site)}: {url} is missing"
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        urls = re.findall(r"url\(['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
        far = [url for pair in urls for url in pair if url and outside(url)]
        assert not far, f"{path.relative_to(site)} loads {far}"


def test_every_image_is_there_and_has_words(site: Path) -> None:
    count = 0
    for path, page in every_page(site).items():
        for src, alt in page.images:
            count += 1
            where = f"{path.relative_to(site)}: {src}"
            assert len(alt.split()) >= 3 and not alt.endswith(".png"), (
                f"{where}: the text {alt!r} says nothing"
            )
            if not src.startswith("data:"):
                assert (path.parent / unquote(src)).stat().st_size > 500, f"{where} is empty"
    assert count >= 0.85 * len(ENTRIES)


def test_benchmarks_are_those_of_the_file(site: Path) -> None:
    report = json.loads((Path(__file__).parents[2] / "docs" / "benchmarks.json").read_text(encoding="utf-8"))
    text = squeezed(read(site / "benchmarks.html").text)
    for words in (report["date"], report["machine"], *(row["case"] for row in report["rows"])):
        assert squeezed(words) in text, f"benchmarks: {words!r} is missing"


@pytest.mark.parametrize("name", ENTRIES)
def test_the_three_lines_run(name: str) -> None:
    lines = gather.usage(ENTRIES[name])
    assert len(lines.splitlines()) == 3
    names: dict[str, object] = {}
    if ENTRIES[name].card.kind == "decode":
        # Two models would have to be trained first.
        lines = lines.rpartition("\n")[0]
    exec(lines, names)
    assert "layer" in names


@pytest.mark.parametrize("claim", CLAIMS)
def test_every_claim_has_a_meaning(claim: str) -> None:
    assert gather.meaning(claim).endswith("."), "say in docs/ext/gather.py what the property means"
