"""Convolutions as a kernelized operation: options in every form, with kernels and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minitf as mt
from minitf import ops
from minitf.engine import ShapeError, tensor
from minitf.ops import kernels
from minitf.ops.kernels import Kernel


class Listening:
    """A backend whose only kernel refuses everything and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.KERNELS = {"conv": Kernel(lambda *_: (None, None), lambda *_: (), self.supports)}

    def unavailable(self) -> None:
        return None

    def supports(self, *args: Any) -> str:
        self.asked.append(args)
        return "it only listens"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 2},
        {"stride": 2, "padding": 1},
        {"padding": "causal", "dilation": 2},
        {"stride": (2, 1)},
    ],
)
def test_kernels_get_the_options_in_order_and_the_definition_still_runs(
    options: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, backend = np.random.default_rng(0), Listening()
    # The only backend: others would answer first.
    monkeypatch.setattr(kernels, "_backends", {})
    monkeypatch.setattr(kernels, "_discovered", True)
    x = tensor(rng.standard_normal((1, 6, 7, 4)))
    w = tensor(rng.standard_normal((2, 3, 4 // options.get("groups", 1), 4)))
    expected = ops.conv2d(x, w, **options).data
    kernels.register_backend("listening", backend)
    try:
        with mt.use("auto"):
            found = ops.conv2d(x, w, **options).data
    finally:
        kernels.unregister_backend("listening")
    assert np.array_equal(found, expected), "a kernel that refuses changes nothing"
    heard = backend.asked[0]
    full = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    assert heard[2:] == tuple(full.values()), f"the kernel was asked with {heard[2:]}"


def test_conv_takes_any_number_of_axes_and_lists() -> None:
    rng = np.random.default_rng(0)
    x, w = tensor(rng.standard_normal((1, 6, 7, 2))), tensor(rng.standard_normal((2, 3, 1, 2)))
    a = ops.conv(x, w, padding=[1, 0], dilation=[1, 2], groups=2).data
    b = ops.conv2d(x, w, padding=(1, 0), dilation=(1, 2), groups=2).data
    assert np.array_equal(a, b), "lists and tuples mean the same"
    with pytest.raises(ShapeError, match="with groups=3"):
        ops.conv(x, w, groups=3)
