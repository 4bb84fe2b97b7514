"""The site in a browser, as readers have it: search, pictures, mathematics, narrow screens, and no errors.

Needs Chromium with its driver, and selenium. Where they are missing these tests are not run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from site_browser import CHROMIUM, DRIVER, Browser, started

pytestmark = pytest.mark.browser
# A page of every kind.
KINDS = (
    "index", "teach", "catalogue", "papers", "benchmarks", "genindex", "search", "lessons/index", "api/index",
    "api/minitf", "api/minitf.ops", "variants/softmax_attention", "variants/swin_attention", "variants/rope",
    "variants/nope",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser without a window."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("not run: Chromium and its driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="not run: selenium is not installed")
    with started(webdriver, site, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize(
    ("words", "title", "page"),
    [
        ("gla", "gla: ", "variants/gla.html"),
        ("softmax_attention", "softmax_attention: ", "variants/softmax_attention.html"),
        # An alias leads to the variant that it stands for.
        ("swiglu", "glu_ffn: ", "variants/glu_ffn.html"),
        ("Attention Is All You Need", "Papers > Attention Is", "papers.html#paper-1706-03762"),
        ("2312.06635", "Papers", "papers.html#paper-2312-06635"),
    ],
)
def test_search_finds_it_first_and_leads_there(browser: Browser, words: str, title: str, page: str) -> None:
    results = browser.search(words)
    assert results and results[0][0].startswith(title), f"the search for {words!r} gives {results[:5]}"
    browser.click("#search-results li > a")
    browser.wait("document.querySelector('h1') !== null && !location.pathname.endsWith('/search.html')")
    assert browser.ask("location.href").startswith(f"{browser.address}/{page.split('#')[0]}")
    if "#" in page:
        place = page.split("#")[1]
        assert browser.ask("location.hash") == f"#{place}"
        top = browser.wait("document.getElementById(arguments[0]).getBoundingClientRect().top + 1", place)
        assert -5 <= top <= 900, f"{place} is out of sight"
    assert not browser.messages()


def test_from_a_paper_to_its_code(browser: Browser) -> None:
    browser.open("papers.html")
    browser.click("section#paper-2312-06635 a[href$='variants/gla.html#source-code']")
    browser.wait("location.pathname.endsWith('/variants/gla.html')")
    browser.wait("Math.abs(document.getElementById('source-code').getBoundingClientRect().top) < 200")
    assert "class " in browser.ask("document.querySelector('#source-code pre').innerText")


def test_lessons_show_pictures_and_mathematics(browser: Browser, lesson_names: list[str]) -> None:
    pictures = equations = 0
    for name in lesson_names:
        browser.open(f"lessons/{name}.html")
        widths = browser.ask("[...document.querySelectorAll('[role=main] img')].map((e) => e.naturalWidth)")
        assert all(width > 0 for width in widths), f"{name}: pictures that are not shown: {widths}"
        boxes = browser.ask(
            "[...document.querySelectorAll('[role=main] math')]"
            ".map((e) => [e.getBoundingClientRect().width, e.getBoundingClientRect().height])"
        )
        assert all(width > 0 and height > 0 for width, height in boxes), f"{name}: equations without a size"
        pictures, equations = pictures + len(widths), equations + len(boxes)
        # A browser that did not know MathML would set numerator and denominator in one line.
        fractions = browser.ask(
            "[...document.querySelectorAll('mfrac')]"
            ".map((e) => [...e.children].map((part) => part.getBoundingClientRect().top))"
        )
        assert all(above < below for above, below in fractions), f"{name}: fractions in one line"
        browser.resize(375)
        browser.assert_fits()
        assert not browser.messages(), name
    assert pictures > len(lesson_names) and equations > len(lesson_names)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_page_fits_a_phone_and_gives_no_error(browser: Browser, kind: str) -> None:
    browser.open(f"{kind}.html", width=375)
    browser.wait("document.readyState === 'complete'")
    browser.assert_fits()
    assert not browser.messages()


def test_catalogue_filters_and_sorts(browser: Browser) -> None:
    browser.open("catalogue.html")
    shown = "[...document.querySelectorAll('table.catalogue tbody tr')].filter((r) => r.checkVisibility())"
    names = f"{shown}.map((r) => r.cells[0].innerText.trim())"
    every = browser.ask(names)
    choose = (
        "(() => { const e = document.querySelector(arguments[0]); e.value = arguments[1];"
        " e.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    browser.ask(choose, "select[name=kind]", "mixer")
    mixers = browser.ask(names)
    assert "gla" in mixers and "softmax_attention" not in mixers and len(mixers) < len(every)
    browser.ask(choose, "select[name=properties]", "chunked")
    chunked = browser.ask(names)
    assert "gla" in chunked and "pool_mixer" not in chunked
    browser.ask(choose, ".catalogue-filter input", "delta")
    assert set(browser.ask(names)) == {"delta_net", "gated_delta_net"}
    assert browser.ask("document.querySelector('.catalogue-filter output').value") == f"2 of {len(every)}"
    for selector in ("select[name=kind]", "select[name=properties]", ".catalogue-filter input"):
        browser.ask(choose, selector, "")
    assert browser.ask(names) == every
    years = f"{shown}.map((r) => +r.cells[4].innerText)"
    browser.click("table.catalogue th:nth-child(5) button")
    assert browser.ask(years) == sorted(browser.ask(years))
    browser.click("table.catalogue th:nth-child(5) button")
    assert browser.ask(years) == sorted(browser.ask(years), reverse=True)


def test_light_and_dark(browser: Browser) -> None:
    browser.open("variants/gla.html")
    colours = []
    for mode in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": mode}]}
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.wait("document.documentElement.dataset.theme === arguments[0]", mode)
        colours.append(browser.ask("getComputedStyle(document.body).backgroundColor"))
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert colours[0] != colours[1], "the page looks the same in both modes"


def test_no_request_leaves_this_machine(browser: Browser, lesson_names: list[str]) -> None:
    browser.driver.get_log("performance")
    for page in (*KINDS, f"lessons/{lesson_names[0]}"):
        browser.open(f"{page}.html")
    browser.search("attention")
    events = [json.loads(entry["message"])["message"] for entry in browser.driver.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert len(urls) > len(KINDS), "requests are not recorded"
    # The browser's own pages come from itself.
    far = [url for url in urls if not url.startswith((f"{browser.address}/", "data:", "blob:", "chrome"))]
    assert not far, f"requests to others: {far}"
