"""Parts on threads: each exactly once, whatever the arguments are, and a failure is not lost."""

import numpy as np
import pytest

pytest.importorskip("numba")

from minitf_numba.runtime import inner, jit, share_out


@inner
def note(p, cut, seen, scale, shift, limits, flag):  # type: ignore[no-untyped-def]
    seen[p, 0] += 1
    seen[p, 1] = p * scale + limits[1] + (10 * cut if flag else 0) + (0 if shift is None else shift[p])


@jit
def note_all(cut, seen, scale, shift, first, second, flag):  # type: ignore[no-untyped-def]
    share_out(note, cut, seen, scale, shift, (first, second), flag)


@jit
def note_twice(cut, seen):  # type: ignore[no-untyped-def]
    share_out(note, cut, seen, 1, None, (0, 0.0), False)
    share_out(note, cut, seen, 2, None, (0, 0.0), False)


@inner
def divide(p, cut, out):  # type: ignore[no-untyped-def]
    if p == cut - 1:
        raise ValueError("the last part")
    out[p] = 1


@jit
def divide_all(cut, out):  # type: ignore[no-untyped-def]
    share_out(divide, cut, out)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 8, 33])
@pytest.mark.parametrize("shifted", [False, True])
def test_each_part_once(cut: int, shifted: bool) -> None:
    seen, shift = np.zeros((cut, 2)), np.arange(cut) / 8
    note_all(cut, seen, 3, shift if shifted else None, 5, 0.5, True)
    want = 3 * np.arange(cut) + 0.5 + 10 * cut + (shift if shifted else 0)
    assert (seen[:, 0] == 1).all() and (seen[:, 1] == want).all(), "a part was left out or run twice"


def test_one_function_shares_out_twice() -> None:
    seen = np.zeros((5, 2))
    note_twice(5, seen)
    assert (seen == np.c_[np.full(5, 2), 2 * np.arange(5)]).all()


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_failure_raises(cut: int) -> None:
    out = np.zeros(cut)
    with pytest.raises(RuntimeError, match="part"):
        divide_all(cut, out)
    assert out[: cut - 1].all()
