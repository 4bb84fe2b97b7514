"""The pytest plugin: what it collects, how it fails, and that it costs nothing where it is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

pytest_plugins = "pytester"

MINE = """
import minitf as mt
from minitf.nn import Linear, Module

class Mean(Module):
    def __init__(self, dim, seed=0):
        self.w = Linear(dim, dim, seed=seed)

    def forward(self, x):
        return self.w(x.mean(axis=1, keepdims=True) + 0.0 * x)
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Any:
    pytester.makepyfile(mine=MINE, test_other="def test_other(): pass")
    # Loaded by hand, so that it does not matter whether it is installed as well.
    return lambda *args: pytester.runpytest("-p", "no:minitf", "-p", "minitf.pytest_plugin", *args)


def test_checks_of_the_catalogue_become_items(run: Any) -> None:
    result = run("--minitf-check", "rmsnorm", "--minitf-check", "rope", "--minitf-examples", "3", "-v")
    result.stdout.fnmatch_lines(["*rmsnorm::token_wise PASSED*", "*rope::norm_preserving PASSED*"])
    assert not result.parseoutcomes().get("failed") and "test_other" not in result.stdout.str(), (
        "without files only the checks are run"
    )


def test_files_are_collected_beside_them(run: Any) -> None:
    result = run("test_other.py", "--minitf-check", "rope", "--minitf-examples", "3")
    result.assert_outcomes(passed=4)
    chosen = run("--minitf-check", "rope", "--minitf-examples", "3", "-k", "norm_preserving")
    chosen.assert_outcomes(passed=1, deselected=2)


def test_a_class_of_a_file(run: Any) -> None:
    mine = ("--minitf-check", "mine.py:Mean", "--minitf-kind", "token_mixer", "--minitf-examples", "5")
    good = run(*mine)
    assert good.ret == 0, "the mean of all tokens is a good mixer"
    bad = run(*mine, "--minitf-claim", "causal")
    assert bad.ret == 1
    bad.stdout.fnmatch_lines(
        ["*causal: outputs before token 1 moved by*", "checks.causal(variant, Case(b=1, t=2*"]
    )
    assert "Traceback" not in bad.stdout.str(), "a traceback through the checks helps nobody"


def test_wrong_use_is_told_in_one_line(run: Any) -> None:
    for args, words in (
        (("--minitf-check", "sofmax"), "*no variant is called 'sofmax'*closest are: softmax*"),
        (("--minitf-check", "mine.py:Mean"), "*mine.py:Mean: Mean has no card: say kind=*"),
        (("--minitf-check", "no.py:Mean"), "*there is no file no.py*"),
    ):
        result = run(*args)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([words])


def test_the_profile_reaches_tests_that_say_nothing(run: Any, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_profile="""
        from minitf.testing import parametrize_with_checks

        def test_fixture(check_variant):
            assert {r.examples for r in check_variant("rope", checks=["norm_preserving"])} == {3}
            assert {r.examples for r in check_variant("rope", checks=["norm_preserving"], examples=7)} == {7}

        @parametrize_with_checks(["rope"])
        def test_check(check):
            assert check.args[2] == 3
            check()
        """
    )
    run("test_profile.py", "--minitf-examples", "3").assert_outcomes(passed=4)
    from minitf.testing.doors import DEFAULTS, PROFILE

    assert DEFAULTS == PROFILE, "the profile must end with the run"


def test_an_expected_failure_is_an_xfail(run: Any, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        rounding="""
        import minitf as mt
        from minitf.attention.softmax import CARD
        from minitf.nn import Linear, Module

        class Rounded(Module):
            card = type(CARD)("rounded", "", "ffn", "", (), True, False, "any", "", (), "",
                              expected_failures={"gradients": "a staircase", "full_jacobian": "a staircase"})

            def __init__(self, dim, seed=0):
                self.w = Linear(dim, dim, seed=seed)

            def forward(self, x):
                return mt.straight_through(mt.ops.round(x), x) + self.w(x)
        """
    )
    result = run("--minitf-check", "rounding.py:Rounded", "--minitf-examples", "5", "-rx")
    assert result.parseoutcomes().get("xfailed") == 2 and result.ret == 0, result.stdout.str()
    result.stdout.fnmatch_lines(["XFAIL *gradients - a staircase"])


def test_importing_the_plugin_is_cheap() -> None:
    code = (
        "import sys, pytest, minitf.pytest_plugin;"
        "slow = 'hypothesis', 'minitf.nn', 'minitf.testing', 'rich', 'numba';"
        "print([m for m in slow if m in sys.modules])"
    )
    env = {"PYTHONPATH": ":".join(map(os.path.abspath, sys.path))}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    ).stdout
    assert out.strip() == "[]", f"every run of pytest would import {out}"
