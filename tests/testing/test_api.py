"""The doors of the testing API: what they accept, what they return, and how they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import minitf as mt
from minitf.attention.softmax import SoftmaxAttention
from minitf.nn import Linear, Module
from minitf.registry import UnknownVariantError, index
from minitf.testing import (
    CHECKS,
    CLAIMS,
    CheckError,
    Reports,
    UsageError,
    check_variant,
    from_file,
    parametrize_with_checks,
    subject,
    variant_checks,
)

FUNCTIONS = Path(__file__).parents[1] / "broken" / "functions.py"


class RunningMean(Module):
    """y_t = W mean(x_1 .. x_t), as a user would write it."""

    def __init__(self, dim: int, seed: int = 0):
        self.w = Linear(dim, dim, seed=seed)

    def forward(self, x: mt.Tensor) -> mt.Tensor:
        counts = mt.ops.arange(1, x.shape[1] + 1)[:, None]
        return self.w(mt.ops.cumsum(x, axis=1) / counts)


def passed(report: Any) -> set[str]:
    return {r.check for r in report if r.status == "passed"}


def few(variant: Any, **options: Any) -> Any:
    return check_variant(variant, examples=8, **options)


def test_a_class_an_instance_and_a_factory() -> None:
    mine = {"kind": "token_mixer", "claims": ("causal",)}
    common = {"causal", "gradients", "finite", "batch_independent"}
    assert common | {"state_dict_round_trip"} <= passed(few(RunningMean, **mine))
    assert common <= passed(few(RunningMean(6), **mine)), "an instance keeps its width"
    assert common <= passed(few(lambda dim, seed: RunningMean(dim, seed), **mine))
    masked = passed(few(lambda dim: mt.build("softmax", dim), kind="token_mixer"))
    assert "mask_rule" in masked, "what a factory makes takes a mask"
    assert common <= passed(few(lambda: RunningMean(4), **mine)), "a factory without arguments has one width"


def test_an_alias_and_a_class_with_a_card() -> None:
    assert "row_stochastic" in passed(few("mqa"))
    assert passed(few(mt.catalogue["softmax"].load())) == passed(few("softmax"))


def test_a_reference_may_be_a_name_a_class_or_a_function() -> None:
    def attend(q: mt.Tensor, k: mt.Tensor, v: mt.Tensor, mask: Any = None) -> mt.Tensor:
        return mt.ops.softmax_attention(q, k, v, mask=mask, causal=True)

    own = {"kind": "attention_function", "claims": ("causal",)}
    assert {"reference", "causal", "mask_rule"} <= passed(few(attend, reference="softmax_attention", **own))
    assert "reference" in passed(few(attend, reference=attend, **own))
    assert "reference" in passed(few(RunningMean, reference=RunningMean, kind="token_mixer"))
    with pytest.raises(CheckError, match="differs from right"):
        few(attend, reference=from_file(str(FUNCTIONS), "right"), **own)


def test_results_are_data() -> None:
    report = few("swiglu")
    assert [r.check for r in report] == list(CHECKS), "one row for each check, in order"
    assert "causal is not claimed" in str(report) and "token_wise" in report._repr_html_()
    data = json.loads(report.to_json())
    assert data["ok"] and data["name"] == "swiglu" and len(data["results"]) == len(CHECKS)
    assert all(r.reason for r in report if r.status == "not applicable"), "each omission needs its reason"


@pytest.mark.parametrize("reference", [None, "softmax_attention", mt.ops.softmax_attention])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_a_failure_prints_four_lines_that_fail(reference: Any, backend: str) -> None:
    wrong = from_file(str(FUNCTIONS), "leaks_the_future")
    options = {"kind": "attention_function", "claims": ("causal",), "checks": ["causal"]}
    with pytest.raises(CheckError) as failure:
        few(wrong, reference=reference, backends=[backend], **options)
    (result,) = failure.value.report
    assert result.snippet in str(failure.value), "the message must hold the snippet"
    assert len(result.snippet.splitlines()) == 4
    # In the folder of the file the four lines run as they are.
    run = subprocess.run(
        [sys.executable, "-c", result.snippet], cwd=FUNCTIONS.parent, capture_output=True, text=True,
        env={"PYTHONPATH": ":".join(map(os.path.abspath, [FUNCTIONS.parent, *sys.path]))},
    )  # fmt: skip
    assert run.returncode == 1 and result.reason in run.stderr, f"the snippet says {run.stderr}"


def test_failures_may_warn_or_stay_silent() -> None:
    wrong = from_file(str(FUNCTIONS), "leaks_the_future")
    options = {"kind": "attention_function", "claims": ("causal",), "checks": ["causal"]}
    with pytest.warns(UserWarning, match="leaks_the_future"):
        few(wrong, on_fail="warn", **options)
    assert few(wrong, on_fail=None, **options).failed


def test_four_lines_for_what_has_no_name() -> None:
    options = {"kind": "attention_function", "reference": mt.ops.softmax_attention}
    (result,) = few(lambda q, k, v: v, checks=["reference"], on_fail=None, **options)
    first = result.snippet.splitlines()[0]
    expected = "from minitf.ops.attention import softmax_attention; # variant: the function that was checked"
    assert first == expected, f"the first line is {first!r}"


def test_expected_failures() -> None:
    wrong = from_file(str(FUNCTIONS), "large_negative_number")
    options = {"kind": "attention_function", "checks": ["mask_rule"]}
    (result,) = few(wrong, expected_failures={"mask_rule": "known"}, **options)
    assert (result.status, result.reason) == ("expected failure", "known")
    with pytest.raises(CheckError, match="but passes: remove it"):
        few("swiglu", checks=["finite"], expected_failures={"finite": "wrongly expected"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"checks": ["causl"]},
            r"unknown check 'causl'. Did you mean 'causal'\? There are: shapes",
        ),
        ({"checks": "causal"}, r"a list of names: checks=\['causal'\]"),
        ({"claims": "causal"}, r"a list of names: claims=\['causal'\]"),
        ({"claims": ("stream",)}, r"unknown claim 'stream'. Did you mean 'streams'\? There are: causal"),
        ({"kind": "token_mixr"}, "unknown kind 'token_mixr'. Did you mean 'token_mixer'"),
        ({"expected_failures": {"causl": ""}}, "unknown check 'causl'"),
        ({"on_fail": "panic"}, "on_fail must be"),
        ({"examples": 0}, "at least 1"),
    ],
)
def test_wrong_use_says_what_there_is(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_variant("swiglu", **options)


def test_what_cannot_be_checked() -> None:
    with pytest.raises(UsageError, match="has no card: say kind=, one of: token_mixer"):
        check_variant(RunningMean)
    with pytest.raises(UsageError, match="needs hidden; a class or factory is called with dim, heads"):
        check_variant(lambda dim, hidden: None, kind="channel_mixer")
    with pytest.raises(UsageError, match="does not say which arguments"):
        check_variant(min, kind="attention_function")
    with pytest.raises(UsageError, match=r"unknown reference 'sofmax_attention'. Did you mean 'softmax_att"):
        check_variant(lambda q, k, v: v, kind="attention_function", reference="sofmax_attention")
    with pytest.raises(UnknownVariantError, match="the closest are: softmax"):
        check_variant("sofmax")


def test_every_property_on_a_card_is_a_check() -> None:
    for name, card in index().items():
        unknown = set(card["properties"]) - set(CLAIMS)
        assert not unknown, f"{name} declares {unknown}, which no check looks at"


def test_backends() -> None:
    report = few("rmsnorm", backends=("reference", "auto"), checks=["finite"])
    assert [r.backend for r in report] == ["reference", "auto"] and "finite [auto]" in str(report)


def test_walking_through_the_checks() -> None:
    ids = dict(variant_checks("rope", examples=3))
    assert set(ids) == {"rope-identities", "rope-state_dict_round_trip", "rope-norm_preserving"}
    for call in ids.values():
        call()


@parametrize_with_checks(["rmsnorm"], examples=3)
def test_parametrized(check: Any) -> None:
    check()


@parametrize_with_checks(
    [from_file(str(FUNCTIONS), "large_negative_number")],
    kind="attention_function",
    checks=["mask_rule", "batch_independent"],
    expected_failures={"mask_rule": "a large negative number is not -inf"},
    examples=5,
)
def test_parametrized_with_an_expected_failure(check: Any) -> None:
    check()


class Wrapped(SoftmaxAttention):
    """Hands all options on, as subclasses do."""

    def __init__(self, dim: int, *, seed: Any = 0, **options: Any):
        super().__init__(dim, seed=seed, **options)

    def forward(self, x: mt.Tensor, **options: Any) -> mt.Tensor:
        return super().forward(x, **options)


def test_options_that_a_subclass_hands_on_are_found() -> None:
    one = subject(Wrapped)
    assert {"mask", "positions", "rng"} <= one.keywords, f"forward takes {one.keywords}"
    assert {"dropout", "heads", "causal"} <= one.accepts, f"the constructor takes {one.accepts}"
    assert {"mask_rule", "seeded_training"} <= passed(few(Wrapped))


def test_a_card_claims_what_its_fields_say() -> None:
    bare = {**vars(SoftmaxAttention.card), "properties": ()}
    Silent = type("Silent", (SoftmaxAttention,), {"card": type(SoftmaxAttention.card)(**bare)})
    assert subject(Silent).claims == {"causal", "streams"}, "causal=True and streams=True are claims"
    Neither = type(
        "Neither", (Silent,), {"card": type(Silent.card)(**{**bare, "causal": False, "streams": False})}
    )
    assert not subject(Neither).claims


def test_reports_of_many() -> None:
    rounding = {"mask_rule": "a large negative number is not -inf"}
    wrong = from_file(str(FUNCTIONS), "large_negative_number")
    bad = few(wrong, kind="attention_function", checks=["mask_rule", "finite"], on_fail=None)
    fine = few(wrong, kind="attention_function", checks=["mask_rule", "finite"], expected_failures=rounding)
    reports = Reports([fine, few("rope", checks=["mask_rule", "norm_preserving"])])
    assert reports.checks == ["mask_rule", "finite", "norm_preserving"] and not reports.failed
    assert [row[1:-1] for row in reports.rows()] == [("~", "\N{CHECK MARK}", ""), ("-", "", "\N{CHECK MARK}")]
    assert "~ large_negative_number mask_rule: a large negative number is not -inf" in str(reports)
    lines = [line.split() for line in reports.lines()]
    assert lines[0] == ["variant", "1", "s"] and lines[1][:2] == ["large_negative_number", "~\N{CHECK MARK}"]
    assert reports.legend()[1:] == ["  1 mask_rule, finite, norm_preserving"]
    reports.append(bad)
    assert reports.failed == [bad] and "\N{BALLOT X} large_negative_number mask_rule" in reports._repr_html_()
    data = json.loads(reports.to_json())
    assert not data["ok"] and [r["ok"] for r in data["reports"]] == [True, True, False]
    assert "3 variants: 3 passed, 1 failed, 1 not applicable, 1 expected failure" in reports.summary()
