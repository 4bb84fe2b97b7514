"""Every kernel of every backend against its definition: operation x dtype x case."""

from __future__ import annotations

import numpy as np
import pytest

import minitf as mt
from minitf.ops import kernels
from minitf.testing import check_kernel
from minitf.testing.kernels import cast, computed, same

from .cases import CASES


def every_case():
    for name, cases in sorted(CASES.items()):
        # Drawn anew for each test: collecting keeps labels only.
        for i, (label, _) in enumerate(cases(np.random.default_rng(0))):
            yield pytest.param(name, i, id=f"{name}-{label}".replace(" ", "_"))


def arguments(name: str, i: int):
    return list(CASES[name](np.random.default_rng(0)))[i][1]


@pytest.fixture(scope="module", autouse=True)
def numba_backend():
    import minitf_numba

    known = "numba" in kernels.backends()
    # Where minitf is installed it is known already; from a plain checkout it is added for these tests.
    kernels.register_backend("numba", minitf_numba)
    assert minitf_numba.unavailable() is None
    yield
    if not known:
        kernels.unregister_backend("numba")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "i"), list(every_case()))
def test_equal_to_the_definition(name, i, dtype):
    check_kernel(name, "numba", arguments(name, i), dtype)


@pytest.fixture
def many_parts(monkeypatch):
    """Small cases, too, are cut into parts."""
    from minitf_numba import runtime

    monkeypatch.setattr(runtime, "SERIAL", 2)


@pytest.mark.parametrize(("name", "i"), list(every_case()))
def test_equal_in_many_parts(name, i, many_parts):
    check_kernel(name, "numba", arguments(name, i), "float32")


@pytest.mark.parametrize(("name", "i"), list(every_case()))
def test_threads_change_no_bit(name, i, many_parts):
    import numba

    found = []
    for threads in (1, 2):
        with mt.use("numba"):
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            found.append(computed(name, "numba", cast(arguments(name, i), "float32"), "float32", 0))
    same(name, *found, "one and two threads")


def test_every_kernel_has_cases():
    import minitf_numba

    assert set(minitf_numba.KERNELS) <= set(CASES), "a kernel without cases is a kernel without proof"


@pytest.mark.parametrize("name", sorted(CASES))
def test_refusals_are_sentences(name):
    """A wrong type of element is refused in words, and the definition runs under "auto"."""
    import minitf_numba

    args = arguments(name, 0)
    half = cast(args, "float16")
    defaults = {k: p.default for k, p in kernels.DEFINITIONS[name][1].parameters.items()}
    why = minitf_numba.KERNELS[name].supports(*{**defaults, **half}.values())
    assert why and "float16" in why, f"{name} should refuse float16 in words, it says {why!r}"
