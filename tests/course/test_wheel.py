"""The installed package has the lessons that `minitf course init` needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from minitf.course import lessons

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_has_the_sources_of_all_lessons(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "-w", tmp_path, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {
        Path(name).name for name in zipfile.ZipFile(wheel).namelist() if "share/minitf/lessons/src" in name
    }
    assert names == {f"{lesson.name}.py" for lesson in lessons()}, "the wheel lacks lessons"
