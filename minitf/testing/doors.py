"""The three doors to the checks: call them, walk through them, hand them to pytest."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from minitf import ops
from minitf.nn import Case

from .checks import CHECKS
from .kinds import UsageError, known
from .report import CheckError, Report, Result
from .strategies import drawn_cases, smaller_cases
from .subject import Subject, subject

# What holds where a call does not say: 100 examples, plain code. The pytest plugin changes DEFAULTS.
PROFILE: dict[str, Any] = {"examples": 100, "backends": ("reference",)}
DEFAULTS = dict(PROFILE)
# How many smaller cases are tried once one has failed.
SHRINKING = 80
# How many cases at least a check gets that is expected to fail.
TRIES_TO_FAIL = 10


def check_variant(
    variant: Any,
    *,
    kind: str | None = None,
    claims: Iterable[str] = (),
    reference: Any = None,
    grid: str | None = None,
    checks: Iterable[str] | None = None,
    examples: int | None = None,
    backends: Iterable[str] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    on_fail: str | None = "raise",
) -> Report:
    """Run every check that applies to a variant.

    Args:
        variant, kind, claims, reference, grid: what is checked, as `subject` takes it.
        checks: names from `CHECKS`; all if left out.
        examples: cases that a check draws, 100 unless pytest was told --minitf-examples; slow checks draw a
            fixed share of that.
        backends: modes of `mt.use` to run under, ("reference",) unless pytest was told --minitf-backend.
        expected_failures: check name -> reason, beside those on the card. One that passes nevertheless counts
            as failed.
        on_fail: "raise" a CheckError, "warn", or None to look at the results alone.

    Returns:
        One result for each check and backend: a list that prints as a table.

    Raises:
        UsageError: an unknown check, claim or kind, or a variant that cannot be built.
        CheckError: a check failed; its text has the table and four lines for each failure.
    """
    if on_fail not in ("raise", "warn", None):
        raise UsageError(f"on_fail must be 'raise', 'warn' or None, not {on_fail!r}")
    one = subject(variant, kind=kind, claims=claims, reference=reference, grid=grid)
    excuses = expected_of(one) | named(expected_failures)
    examples, backends = settled(examples, backends)
    results = [
        run_check(one, name, examples, backend, excuses.get(name))
        for backend in backends
        for name in chosen(checks, examples)
    ]
    report = Report(one.name, results)
    if report.failed and on_fail == "raise":
        raise CheckError(report)
    if report.failed and on_fail == "warn":
        warnings.warn(str(report), stacklevel=2)
    return report


def variant_checks(
    variant: Any,
    *,
    kind: str | None = None,
    claims: Iterable[str] = (),
    reference: Any = None,
    grid: str | None = None,
    checks: Iterable[str] | None = None,
    examples: int | None = None,
    backends: Iterable[str] | None = None,
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Walk through the checks that apply: pairs of an id such as "swiglu-causal" and a call that runs it.

    Arguments as in `check_variant`. The call raises CheckError if the check fails; for a check that the card
    expects to fail, if it passes.
    """
    one = subject(variant, kind=kind, claims=claims, reference=reference, grid=grid)
    excuses = expected_of(one)
    examples, backends = settled(examples, backends)
    for backend in backends:
        for name in chosen(checks, examples):
            if not CHECKS[name].excuse(one):  # type: ignore[attr-defined]
                where = f"-{backend}" if len(backends) > 1 else ""
                yield (
                    f"{one.name}-{name}{where}",
                    partial(_insist, one, name, examples, backend, expected=excuses.get(name)),
                )


def parametrize_with_checks(
    variants: Iterable[Any], *, expected_failures: Mapping[str, str] | None = None, **options: Any
) -> Any:
    """Make one pytest test of every check of every variant; the test takes `check` and calls it.

        @parametrize_with_checks(["swiglu", MyMixer], examples=20)
        def test_variant(check):
            check()

    Options as in `variant_checks`, the same for all. Expected failures become strict xfail marks.
    """
    import pytest

    excuses = named(expected_failures)
    rows = []
    for variant in variants:
        for words, call in variant_checks(variant, **options):
            reason = excuses.get(call.args[1])  # type: ignore[attr-defined]
            marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
            rows.append(pytest.param(call, id=words, marks=marks))
    return pytest.mark.parametrize("check", rows)


def settled(examples: int | None, backends: Iterable[str] | None) -> tuple[int, tuple[str, ...]]:
    """The number of examples and the backends, with what DEFAULTS says where there is None."""
    return DEFAULTS["examples"] if examples is None else examples, tuple(backends or DEFAULTS["backends"])


def chosen(checks: Iterable[str] | None, examples: int) -> list[str]:
    """The names of the checks to run. Raises UsageError for what is not one."""
    if isinstance(checks, str):
        raise UsageError(f"checks is a list of names: checks=[{checks!r}]")
    if examples < 1:
        raise UsageError(f"examples must be at least 1, not {examples}")
    return list(CHECKS) if checks is None else [known("check", name, CHECKS) for name in checks]


def named(expected_failures: Mapping[str, str] | None) -> dict[str, str]:
    """The reasons by check. Raises UsageError for what is not one."""
    return {known("check", name, CHECKS): reason for name, reason in (expected_failures or {}).items()}


def expected_of(one: Subject) -> dict[str, str]:
    """The checks that the card of a subject expects to fail."""
    return named(one.card.expected_failures if one.card else None)


def run_check(one: Subject, name: str, examples: int, backend: str, expected: str | None = None) -> Result:
    """Run one check on its cases until one fails, and shrink that to the smallest."""
    check: Any = CHECKS[name]
    excuse = check.excuse(one)
    if excuse:
        return Result(name, backend, "not applicable", excuse)
    count = max(1, round(examples * check.share))
    if expected:
        # It need not show in the first case.
        count = max(count, TRIES_TO_FAIL)

    def error_of(case: Case) -> Exception | None:
        try:
            check(one, case)
        except Exception as error:
            return error
        return None

    begin = time.perf_counter()
    cases = drawn_cases(one, check.size, max(examples, count), count)
    # A wrong variant may divide by zero: that is for the checks to say.
    with np.errstate(all="ignore"), ops.kernels.use(backend):
        failed = next(((case, error) for case in cases if (error := error_of(case))), None)
        if failed and not expected:
            failed = smallest(one, *failed, error_of)
    seconds = time.perf_counter() - begin
    if failed is None:
        if expected:
            words = f"was expected to fail ({expected}), but passes: remove it from expected_failures"
            return Result(name, backend, "failed", words, None, count, seconds)
        return Result(name, backend, "passed", "", None, count, seconds)
    case, error = failed
    if expected:
        return Result(name, backend, "expected failure", expected, case, count, seconds)
    # pytest rewrites the assertions of its plugins' packages, ours too, and adds what it saw on lines of its
    # own.
    said = isinstance(error, AssertionError) and str(error).split("\nassert ")[0]
    reason = said or f"{type(error).__name__}: {error}"
    return Result(name, backend, "failed", reason, case, count, seconds, snippet(one, name, case, backend))


def smallest(
    one: Subject, case: Case, error: Exception, error_of: Callable[[Case], Exception | None]
) -> tuple[Case, Exception]:
    """The smallest case near this one that fails in the same way, and its error."""
    tries = SHRINKING
    while True:
        for smaller in smaller_cases(one, case):
            if tries == 0:
                return case, error
            tries -= 1
            found = error_of(smaller)
            if type(found) is type(error):
                case, error = smaller, found
                break
        else:
            return case, error


def snippet(one: Subject, name: str, case: Case, backend: str) -> str:
    """Four lines that run one check on one case."""
    first, made = one.code
    mode = "" if backend == "reference" else f"import minitf; minitf.use({backend!r}); "
    return (
        f"{mode}{first}\nfrom minitf.testing import Case, checks, subject\nvariant = {made}\n"
        f"checks.{name}(variant, {case})"
    )


def _insist(one: Subject, name: str, examples: int, backend: str, *, expected: str | None) -> None:
    result = run_check(one, name, examples, backend, expected)
    if result.status == "failed":
        raise CheckError(Report(one.name, [result]))
