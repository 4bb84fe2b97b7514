"""Proof that the checks can fail: each wrong variant is caught, and each check catches at least one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minitf.ops import kernels
from minitf.testing import CHECKS, check_variant, from_file

BROKEN = Path(__file__).parents[1] / "broken"

# File -> wrong variant -> the check that must catch it.
CAUGHT_BY = {
    "mixers": {
        "LeaksOneToken": "causal",
        "LeaksInGradientOnly": "causal",
        "MixesHeads": "causal",
        "SoftmaxOverQueries": "row_stochastic",
        "ChangesItsInput": "inputs_not_modified",
        "RemembersTheLastBatch": "deterministic",
        "DrawsWithoutASeed": "deterministic",
        "UnseededParameter": "deterministic",
        "NormalisesOverTheBatch": "batch_independent",
        "LeaksGradientsInTheBatch": "batch_independent",
        "KeepsOldWeights": "state_dict_round_trip",
        "DrawsInTraining": "seeded_training",
        "LooksLeftInGradientOnly": "token_wise",
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
        "OneDerivativeOff": "full_jacobian",
        "RotatesTheWrongPairs": "reference",
        "SharesAWeight": "reference",
        "GroupsHeadsTheOtherWay": "reference",
    },
    "recurrences": {
        "DecaysOneStepLate": "every_chunk_size",
        "DropsTheChunkBoundary": "every_chunk_size",
        "RoundsItsState": "streams",
        "WrongFinalState": "streams",
        "PrefillStartsAfresh": "streams",
        "WritesIntoTheState": "streams",
        "SharesTheStateInABatch": "streams",
        "StepsInFloat64": "streams",
        "LeaksAtTheTileEdge": "causal",
        "LeaksUnderAMask": "causal",
        "DividesByTheLength": "prefix_invariant",
        "LastTileOnly": "prefix_invariant",
        "WrongForOneToken": "prefix_invariant",
        "HiddenTokensFeedTheGate": "padding_invariant",
        "IgnoresPairMasks": "mask_shapes",
        "DropsWithoutASeed": "seeded_training",
        "DropsInEval": "seeded_training",
        "ForgetsDropout": "seeded_training",
        "GatesBeforeTheNorm": "reference",
        "SeedsTheGlobalGenerator": "deterministic",
        "KeepsItsFirstSize": "deterministic",
        "IdleParameter": "every_parameter_learns",
        "HalfPrecisionInside": "precision",
        "SmallGradientOff": "gradients",
        "BroadcastGradientNotSummed": "gradients",
        "ScalesTwiceUnderAMask": "spelled_out_defaults",
        "OtherWithoutRecording": "spelled_out_defaults",
        "ReadsRawMemory": "memory_layout",
        "PromotesUnderAMask": "shapes_and_dtypes",
    },
    "grids": {
        "WrapsOneAxis": "translation_equivariant",
        "ReadsColumnsAsRows": "translation_equivariant",
        "GivesColumnsForRows": "shapes_and_dtypes",
        "FirstTokenCountsMore": "permutation_invariant",
        "KeepsTooMany": "shapes_and_dtypes",
        "DependsOnThePlace": "permutation_equivariant",
        "CostsMoreThanItSays": "cost_grows_as_stated",
    },
    "selection": {
        "last_among_equals": "reference",
        "all_equals": "reference",
        "LastExpertAmongEquals": "reference",
        "BalancesOverTheBatch": "token_wise",
    },
    "functions": {
        "forgets_the_scale": "reference",
        "scales_twice": "reference",
        "swaps_heads": "reference",
        "drops_the_tail_tile": "reference",
        "drops_the_third_tile": "reference",
        "drops_wide_features": "reference",
        "softmax_over_queries": "reference",
        "value_gradient_off": "gradients",
        "masks_after_softmax": "padding_invariant",
        "first_examples_mask_for_all": "padding_invariant",
        "first_heads_mask_for_all": "mask_shapes",
        "refuses_flat_masks": "mask_shapes",
        "turns_the_mask": "hidden_pairs",
        "sees_what_any_query_sees": "hidden_pairs",
        "large_negative_number": "mask_rule",
        "empty_rows_see_all": "mask_rule",
        "writes_into_the_mask": "inputs_not_modified",
        "adds_the_mask": "hidden_pairs",
        "overflows": "finite",
        "softmax_in_float16": "precision",
        "promotes_under_a_mask": "shapes_and_dtypes",
        "leaks_the_future": "causal",
        "leaks_at_a_tile_edge": "causal",
        "hides_a_little": "causal",
        "FalseIdentity": "identities",
    },
    "kernels": dict.fromkeys(
        (
            "drops_the_tail_tile",
            "leaves_a_row_unwritten",
            "assumes_contiguous_arrays",
            "accumulates_in_float32",
            "nan_on_empty_rows",
            "ignores_the_mask",
            "changes_its_arguments",
            "shares_residuals",
            "differs_between_runs",
            "gradient_slightly_off",
            "forgets_one_gradient",
        ),
        "kernels",
    ),
}
ALL = [(file, name) for file, names in CAUGHT_BY.items() for name in names]


def load(file: str, name: str) -> tuple[Any, dict[str, Any]]:
    """A variant of tests/broken, and how it is checked."""

    def get(other: str) -> Any:
        return from_file(str(BROKEN / f"{file}.py"), other)

    check, thing = CAUGHT_BY[file].get(name), get(name)
    if file == "kernels":
        register(thing)
        return "softmax_attention", {}
    if file == "functions" and name != "FalseIdentity":
        claims = ("causal",) if check == "causal" else ("permutation_equivariant",) if check is None else ()
        return thing, {"kind": "attention_function", "claims": claims, "reference": "softmax_attention"}
    if file == "recurrences":
        return thing, {**get("HOW"), "reference": get("RightMemory")}
    if file == "grids" and not hasattr(thing, "card"):
        return thing, get("HOW" if issubclass(thing, get("RightTorus")) else "HOW_POOL")
    if file == "selection":
        if isinstance(thing, type):
            return thing, {"kind": "channel_mixer", "reference": get("RightExperts")}
        return thing, {"kind": "attention_function", "reference": get("right_top_keys")}
    return thing, {"reference": getattr(thing, "right", "softmax_attention")} if check == "reference" else {}


def register(kernel: Any) -> None:
    module = SimpleNamespace(KERNELS={"softmax_attention": kernel}, unavailable=lambda: None)
    kernels.register_backend("handwritten", module)


@pytest.fixture(autouse=True)
def no_other_backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernels that are installed have tests of their own; here they would only take time."""
    for name, value in (("_backends", {}), ("_failures", {}), ("_ready", {}), ("_discovered", True)):
        monkeypatch.setattr(kernels, name, value)
    yield
    kernels._ready.clear()


@pytest.mark.parametrize(("file", "name"), ALL, ids=[f"{file}-{name}" for file, name in ALL])
def test_each_is_caught(file: str, name: str) -> None:
    check = CAUGHT_BY[file][name]
    variant, how = load(file, name)
    (result,) = check_variant(variant, checks=[check], examples=20, on_fail=None, **how)
    assert result.status == "failed", f"{name} was not caught by {check}: {result}"
    assert result.case is not None and len(result.snippet.splitlines()) == 4, f"{name}: no way to reproduce"


def test_each_check_catches_one() -> None:
    idle = set(CHECKS) - {check for names in CAUGHT_BY.values() for check in names.values()}
    assert not idle, f"no wrong variant proves that these checks can fail: {sorted(idle)}"


RIGHT = (
    ("functions", "right"),
    ("recurrences", "RightMemory"),
    ("grids", "RightTorus"),
    ("grids", "RightPool"),
    ("selection", "right_top_keys"),
    ("selection", "RightExperts"),
    ("kernels", "right"),
)


@pytest.mark.parametrize(("file", "name"), RIGHT, ids=[f"{file}-{name}" for file, name in RIGHT])
def test_what_the_wrong_ones_were_made_of_is_right(file: str, name: str) -> None:
    variant, how = load(file, name)
    report = check_variant(variant, examples=20, **how)
    assert sum(r.status == "passed" for r in report) >= 10, f"{name} was hardly checked: {report}"


def test_every_wrong_variant_is_in_the_table() -> None:
    helpers = {
        "mixers": {"RightRotary", "RightGroups"},
        "functions": {"linear"},
        "selection": {"attend_to"},
        "kernels": {"probabilities", "forward", "back", "supports", "changed_forward"},
    }
    for file, names in CAUGHT_BY.items():
        found = set()
        for line in (BROKEN / f"{file}.py").read_text(encoding="utf-8").splitlines():
            if line.startswith(("class ", "def ")):
                found.add(line.split()[1].split("(")[0].rstrip(":"))
            elif file == "kernels" and " = " in line and line[0].isalpha() and line[0].islower():
                found.add(line.split(" = ")[0])
        right = {name for other, name in RIGHT if other == file}
        found = {name for name in found - helpers.get(file, set()) - right if not name.startswith("_")}
        assert found == set(names), f"{file}.py and the table differ: {found ^ set(names)}"
    assert {path.stem for path in BROKEN.glob("*.py")} == set(CAUGHT_BY)


def test_failures_shrink() -> None:
    variant, how = load("functions", "leaks_the_future")
    (result,) = check_variant(variant, checks=["causal"], on_fail=None, **how)
    assert result.case is not None
    size = (result.case.b, result.case.t, result.case.h, result.case.d)
    assert size == (1, 2, 1, 2), f"a leak needs two tokens of one head, not {result.case}"
    variant, how = load("functions", "drops_the_tail_tile")
    (result,) = check_variant(variant, checks=["reference"], on_fail=None, **how)
    assert result.case is not None and result.case.t == 5, f"a tile of 4 needs 5 tokens, not {result.case}"
    variant, how = load("functions", "leaks_at_a_tile_edge")
    (result,) = check_variant(variant, checks=["causal"], on_fail=None, **how)
    assert result.case is not None and result.case.t == 65, f"key 64 needs 65 tokens, not {result.case}"
