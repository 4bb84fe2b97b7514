"""Proof that the checks can fail: each wrong variant is caught, and each check catches at least one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from minitf.testing import CHECKS, check_variant, from_file

BROKEN = Path(__file__).parents[1] / "broken"

# Wrong variant -> the check that must catch it.
MIXERS = {
    "LeaksOneToken": "causal",
    "LeaksInGradientOnly": "causal",
    "MixesHeads": "causal",
    "SoftmaxOverQueries": "row_stochastic",
    "ChangesItsInput": "inputs_not_modified",
    "RemembersTheLastBatch": "deterministic",
    "DrawsWithoutASeed": "deterministic",
    "UnseededParameter": "deterministic",
    "NormalisesOverTheBatch": "batch_independent",
    "GradientSlightlyOff": "gradients",
    "ParameterWithoutGradient": "gradients",
    "ComputesInFloat32": "gradients",
    "AnswersInFloat32": "shapes_and_dtypes",
    "FirstTokenIsSpecial": "permutation_equivariant",
    "AttendsToPadding": "padding_invariant",
    "NaNOnEqualRows": "finite",
    "StaleCache": "streams",
    "ForgetsTheOffset": "streams",
    "HiddenWeight": "state_dict_round_trip",
    "ScaledTwice": "reference",
    "LooksLeft": "token_wise",
    "StretchingRoPE": "norm_preserving",
}
FUNCTIONS = {
    "forgets_the_scale": "reference",
    "scales_twice": "reference",
    "swaps_heads": "reference",
    "drops_the_tail_tile": "reference",
    "softmax_over_queries": "reference",
    "masks_after_softmax": "padding_invariant",
    "large_negative_number": "mask_rule",
    "overflows": "finite",
    "leaks_the_future": "causal",
}
# The false identity stands beside the functions.
CAUGHT_BY = MIXERS | FUNCTIONS | {"FalseIdentity": "identities"}


def load(name: str) -> tuple[Any, dict[str, Any]]:
    """A wrong variant, and how it is checked."""
    variant = from_file(str(BROKEN / ("mixers.py" if name in MIXERS else "functions.py")), name)
    if name in FUNCTIONS:
        claims = ("causal",) if CAUGHT_BY[name] == "causal" else ()
        return variant, {"kind": "attention_function", "claims": claims, "reference": "softmax_attention"}
    return variant, {"reference": "softmax_attention"} if CAUGHT_BY[name] == "reference" else {}


@pytest.mark.parametrize("name", CAUGHT_BY)
def test_each_is_caught(name: str) -> None:
    variant, how = load(name)
    (result,) = check_variant(variant, checks=[CAUGHT_BY[name]], examples=30, on_fail=None, **how)
    assert result.status == "failed", f"{name} was not caught by {CAUGHT_BY[name]}: {result}"
    assert result.case is not None and len(result.snippet.splitlines()) == 4, f"{name}: no way to reproduce"


def test_each_check_catches_one() -> None:
    idle = set(CHECKS) - set(CAUGHT_BY.values())
    assert not idle, f"no wrong variant proves that these checks can fail: {sorted(idle)}"


def test_every_wrong_variant_is_in_the_table() -> None:
    from_file(str(BROKEN / "mixers.py"), "LeaksOneToken")
    found = set()
    for path in BROKEN.glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(("class ", "def ")):
                found.add(line.split()[1].split("(")[0])
    # `linear` is the identity of FalseIdentity, and `right` is right.
    assert found - {"right", "linear"} == set(CAUGHT_BY)


def test_the_right_function_passes() -> None:
    right = from_file(str(BROKEN / "functions.py"), "right")
    report = check_variant(
        right,
        kind="attention_function",
        claims=("permutation_equivariant",),
        reference="softmax_attention",
        examples=40,
    )
    assert not report.failed and sum(r.status == "passed" for r in report) >= 10


def test_failures_shrink() -> None:
    variant, how = load("leaks_the_future")
    (result,) = check_variant(variant, checks=["causal"], on_fail=None, **how)
    assert result.case is not None
    size = (result.case.b, result.case.t, result.case.h, result.case.d)
    assert size == (1, 2, 1, 2), f"a leak needs two tokens of one head, not {result.case}"
    variant, how = load("drops_the_tail_tile")
    (result,) = check_variant(variant, checks=["reference"], on_fail=None, **how)
    assert result.case is not None and result.case.t == 5, f"a tile of 4 needs 5 tokens, not {result.case}"
