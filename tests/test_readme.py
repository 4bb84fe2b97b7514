"""The README is true: its code runs and does what the text says, and what it links to exists."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path

import numpy as np
from matplotlib.image import imread

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_ten_lines() -> None:
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line and not line.startswith("import")]) <= 10
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    *differences, gradients = printed.getvalue().splitlines()
    assert len(differences) == 5
    for difference in differences:
        assert float(difference) <= 1e-15, f"streaming and parallel form differ by {difference}"
    row = np.array(re.findall(r"[\d.]+", gradients), dtype=float)
    assert np.all(row[:3] > 0.0) and np.all(row[3:] == 0.0), f"gradients are not causal: {row}"


def test_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), f"README.md links to {target}, which does not exist"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    texts = TEXT + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", texts, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"the Makefile has no target {target}"


def test_commands_exist() -> None:
    from minitf.cli import COMMANDS

    for command in set(re.findall(r"`minitf ([a-z]+)", TEXT)):
        assert command in COMMANDS, f"README.md names `minitf {command}`, which does not exist"


def test_the_picture_can_be_drawn_again(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "docs" / "patterns.py"))
    script["main"](tmp_path)
    drawn, kept = (imread(folder / "patterns.png") for folder in (tmp_path, ROOT / "docs"))
    # Fonts and colours may differ between machines; what lies where does not.
    assert drawn.shape == kept.shape, f"{drawn.shape} drawn, {kept.shape} kept: run docs/patterns.py again"
    error = float(np.mean(np.abs(drawn - kept)))
    assert error <= 0.02, f"docs/patterns.png is out of date by {error:.3f}: run docs/patterns.py again"


def test_the_numbers_of_kernels() -> None:
    import minitf_cupy
    import minitf_numba

    words = f"Numba kernels for {len(minitf_numba.KERNELS)} operations"
    assert words in TEXT, f"the table should say: {words}"
    assert f"CUDA kernels for {len(minitf_cupy.KERNELS)}," in TEXT, "the number of CUDA kernels is another"
