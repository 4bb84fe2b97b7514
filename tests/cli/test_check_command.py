"""`minitf check`: one variant, several, a file; what it shows and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import minitf
from minitf.cli import main
from minitf.commands import check
from minitf.testing import CHECKS, Report, Reports, Result

FUNCTIONS = Path(__file__).parents[1] / "broken" / "functions.py"
WRONG = (f"{FUNCTIONS}:leaks_the_future", "--kind", "attention_function", "--claim", "causal")


def call(*args: str, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["check", *args])
    assert result.exit_code == code, (
        f"minitf check {' '.join(args)}: exit code {result.exit_code}: {result.output}"
    )
    return result.output


def test_one_variant() -> None:
    words = call("rope", "--examples", "3")
    assert "norm_preserving" in words and "3 passed" in words
    data = json.loads(call("rope", "--examples", "3", "--json"))
    assert data["ok"] and len(data["results"]) == len(CHECKS)


def test_a_failure() -> None:
    words = call(*WRONG, "--examples", "5", code=1)
    assert "checks.causal(variant, Case(b=1, t=2" in words
    data = json.loads(call(*WRONG, "--examples", "5", "--json", code=1))
    assert not data["ok"] and any(r["snippet"] for r in data["results"])


def test_some_checks_only() -> None:
    data = json.loads(
        call("swiglu", "--check", "finite", "--check", "gradients", "--examples", "5", "--json")
    )
    assert [r["check"] for r in data["results"]] == ["finite", "gradients"]


def test_an_expected_failure() -> None:
    words = call(
        *WRONG, "--check", "causal", "--examples", "5", "--expected-failure", "causal=it looks ahead"
    )
    assert "1 expected failure" in words and "it looks ahead" in words
    call(
        "rope",
        "--check",
        "norm_preserving",
        "--expected-failure",
        "norm_preserving=no",
        "--examples",
        "3",
        code=1,
    )


def test_grid_reference_and_backends() -> None:
    words = call("swin_attention", "--grid", "2d", "--check", "finite", "--examples", "3")
    assert "1 passed" in words
    right = (f"{FUNCTIONS}:right", "--kind", "attention_function", "--reference", "softmax_attention")
    assert "reference" in call(*right, "--check", "reference", "--examples", "3")
    both = json.loads(
        call("rope", "--check", "norm_preserving", "--backend", "reference", "--backend", "auto", "--json")
    )
    assert [r["backend"] for r in both["results"]] == ["reference", "auto"]


def test_several_make_a_table() -> None:
    words = call("rope", "rmsnorm", "--examples", "3")
    lines = words.splitlines()
    marks = {
        line.split()[0]: "".join(line.split()[1:-1]) for line in lines if line.startswith(("rope ", "rms"))
    }
    assert len(marks["rope"]) == len(CHECKS), "one mark for each check, between the name and the seconds"
    assert {"\N{CHECK MARK}", "-"} == set(marks["rope"])
    assert "  1 shapes_and_dtypes, " in words and "2 variants" in words
    data = json.loads(call("rope", "rmsnorm", "--examples", "3", "--json"))
    assert data["ok"] and [r["name"] for r in data["reports"]] == ["rope", "rmsnorm"]


def test_the_table_fits_a_terminal() -> None:
    # The longest name of the catalogue.
    name, results = "cascaded_group_attention", [Result(c, "", "passed", seconds=1.0) for c in CHECKS]
    reports = Reports([Report(name, results)])
    assert max(map(len, reports.lines())) <= 80, "the table is wider than a terminal"
    assert max(map(len, reports.legend())) <= 120


def test_a_reason_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from minitf.nn import Module\n\nclass Typo(Module):\n"
        "    def __init__(self, dim):\n        pass\n\n    def forward(self, x):\n        return self.y + x\n"
    )
    words = call(f"{tmp_path}/mine.py:Typo", "--kind", "channel_mixer", "--examples", "2", code=1)
    assert words.count("variant = subject(Typo") == 1, "each check repeats what one has told"
    assert "# the same in deterministic, inputs_not_modified" in words


def test_a_failure_among_several() -> None:
    words = call(*WRONG, "rmsnorm", "--examples", "5", "--check", "causal", code=1)
    assert "checks.causal(variant" in words and "\N{BALLOT X}" in words
    # What cannot be built is a failure like others.
    words = call("sofmax", "rmsnorm", "--examples", "3", "--check", "finite", code=1)
    assert "sofmax build: UnknownVariantError" in words and "1 passed" in words


def test_all_with_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "index", lambda: {"nope": {}, "rope": {}, "learned_pos": {}})
    data = json.loads(call("--all", "--examples", "3", "--json", "-j", "2"))
    assert data["ok"] and [r["name"] for r in data["reports"]] == ["nope", "rope", "learned_pos"], (
        "in the order of the catalogue, whichever is ready first"
    )


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((), 2, "minitf check NAME, or --all"),
        (("--all", "rope"), 2, "minitf check NAME, or --all"),
        (("sofmax",), 1, "the closest are: softmax"),
        (("nowhere.py:X",), 1, "no file nowhere.py"),
        ((f"{FUNCTIONS}:leak_the_future",), 1, "Did you mean 'leaks_the_future'"),
        ((str(FUNCTIONS),), 1, "say which of its classes or functions to check, as"),
        ((f"{FUNCTIONS}:right",), 1, "right has no card: say --kind with one of: token_mixer"),
        (("rope", "--check", "causl"), 1, "unknown check 'causl'. Did you mean 'causal'?"),
        (("rope", "nope", "--check", "causl"), 1, "unknown check 'causl'"),
        (("rope", "--expected-failure", "causal"), 2, "is not CHECK=REASON"),
        (("rope", "--backend", "nomba"), 1, "no backend 'nomba'"),
        (("rope", "nope", "--backend", "nomba"), 1, "no backend 'nomba'"),
        (("rope", "--examples", "0"), 2, "--examples"),
    ],
)
def test_wrong_use_is_told_in_words(args: tuple[str, ...], code: int, words: str) -> None:
    said = " ".join(call(*args, code=code).split())
    assert words in said, f"it says {said!r}"
    assert "Traceback" not in said


def test_it_leaves_nothing_behind(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "minitf.cli", "check", "nope"],
        cwd=tmp_path, env={"PYTHONPATH": ":".join(map(os.path.abspath, sys.path))}, check=True,
    )  # fmt: skip
    assert not list(tmp_path.iterdir()), "`minitf check` left files where it was called"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(check, "on_terminal", lambda: True)
    # rich takes this for a terminal.
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with check.watched(2, as_json=False) as seen:
        for name in ("nope", "rope"):
            seen(check.report_of(name, {"examples": 3}))
    assert "2/2" in capsys.readouterr().out, "the bar should have counted both"


def test_help_names_the_checks() -> None:
    words = call("--help")
    assert all(name in " ".join(words.split()) for name in CHECKS) and minitf.__name__ in words
