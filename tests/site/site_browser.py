"""Chromium without a window, and a server for the site, for the tests of its pages."""

from __future__ import annotations

import functools
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
# Seconds until a page has to be ready; a busy machine is slow.
PATIENCE = 60


class Browser:
    """A browser, and the address of the site."""

    def __init__(self, driver: Any, address: str):
        self.driver, self.address = driver, address

    def resize(self, width: int = 1280, height: int = 900) -> None:
        """Make the window as wide as that of a laptop, or of a phone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def open(self, page: str, width: int = 1280) -> None:
        """Show a page of the site in a window of this width, and forget what was said before."""
        self.resize(width)
        self.messages()
        self.driver.get(f"{self.address}/{page}")

    def ask(self, script: str, *values: Any) -> Any:
        """The value of some JavaScript."""
        return self.driver.execute_script(f"return {script}", *values)

    def wait(self, script: str, *values: Any) -> Any:
        """The value of some JavaScript as soon as it is true."""
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, PATIENCE).until(lambda _: self.ask(script, *values), script)

    def messages(self) -> list[str]:
        """The errors and warnings in the console since it was last asked."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def search(self, words: str) -> list[tuple[str, str]]:
        """Type words into the search of the landing page; the titles and addresses of all results."""
        from selenium.webdriver.common.by import By
        from selenium.webdriver.common.keys import Keys

        self.open("index.html")
        self.wait("document.querySelector('.search-button__button, .search-button') !== null")
        self.driver.find_element(By.CSS_SELECTOR, ".search-button__button, .search-button").click()
        field = self.wait("[...document.querySelectorAll('input[name=q]')].find((e) => e.checkVisibility())")
        field.send_keys(words + Keys.ENTER)
        self.wait("location.pathname.endsWith('/search.html') && document.readyState === 'complete'")
        # The status is written when the last result stands.
        self.wait("document.querySelector('#search-results .search-summary')?.innerText.includes('finished')")
        found = self.ask(
            "[...document.querySelectorAll('#search-results li > a')].map((a) => [a.text, a.href])"
        )
        return [(title, address.removeprefix(f"{self.address}/")) for title, address in found]

    def click(self, selector: str) -> None:
        """Click the first element that a selector finds."""
        self.wait("document.querySelector(arguments[0]) !== null", selector)
        self.ask("document.querySelector(arguments[0]).click()", selector)

    def assert_fits(self) -> None:
        """At 375 pixels nothing scrolls sideways or is cut off but in boxes of its own; letters are fair."""
        page = self.ask("location.pathname")
        wide, room = self.ask("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert room == 375 and wide <= room, f"{page}: {wide} pixels wide on a screen of {room}"
        beyond = self.ask("""[...document.querySelectorAll('[role=main] *')].filter((e) => {
            const inside = (box) => box.getBoundingClientRect().right <= 376;
            if (!e.checkVisibility()) return false;
            // What lies to the left of a box cannot be scrolled to.
            if (e.getBoundingClientRect().right > 0 && e.getBoundingClientRect().left < -1) return true;
            if (inside(e)) return false;
            for (let box = e; !box.matches('section, article, main'); box = box.parentElement)
                if (/auto|scroll/.test(getComputedStyle(box).overflowX) && inside(box)) return false;
            return true;
        }).map((e) => e.outerHTML.slice(0, 100))""")
        assert not beyond, f"{page}: cut off on a phone: {beyond[:3]}"
        size = self.ask("parseFloat(getComputedStyle(document.querySelector('[role=main]')).fontSize)")
        assert size >= 14, f"{page}: letters of {size} pixels"


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without telling about it."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def started(webdriver: Any, site: Path, profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, and a server for it."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield Browser(driver, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        driver.quit()
        server.shutdown()
        thread.join()
        server.server_close()
