"""Builds the site once for all of these tests, into a temporary folder, and reads its pages."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minitf.course import lessons

ROOT = Path(__file__).parents[2]
# The extensions of the site, which are tested by themselves, too; what the tests here share.
sys.path[:0] = [str(ROOT / "docs"), str(Path(__file__).parent)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs the whole site is slow."""
    for item in items:
        if "built" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")


def build(folder: Path) -> None:
    """Build into `folder`, as `make site` does; `log` holds what was said, `code` is written last."""
    source = folder / "source"
    source.mkdir()
    paths = os.pathsep.join([str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")])
    command = ["-m", "sphinx", "-W", "--keep-going", "-b", "html", "-c", str(ROOT / "docs")]
    done = subprocess.run(
        [sys.executable, *command, "-d", str(folder / "doctrees"), str(source), str(folder / "site")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "Agg"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder.joinpath("log").write_text(done.stdout, encoding="utf-8")
    half = folder / "code.half"
    half.write_text(str(done.returncode), encoding="utf-8")
    half.replace(folder / "code")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder with `site`, `log` and `code`. Of several processes the first builds, the others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "documentation"
    try:
        folder.mkdir()
    except FileExistsError:
        limit = time.monotonic() + 1800
        while not (folder / "code").exists():
            assert time.monotonic() < limit, "another process builds the site, and does not come to an end"
            time.sleep(0.5)
    else:
        build(folder)
    return folder


@pytest.fixture(scope="session")
def site(built: Path) -> Path:
    """The folder of the pages."""
    assert (built / "site" / "index.html").exists(), (built / "log").read_text(encoding="utf-8")[-3000:]
    return built / "site"


@pytest.fixture(scope="session")
def lesson_names() -> list[str]:
    """The names of all lessons."""
    return [lesson.name for lesson in lessons()]
