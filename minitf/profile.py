"""Count floating-point operations, bytes moved, and live memory, exactly, for every operation.

    with mt.profile() as p:
        model.loss(tokens, targets).backward()
    print(p)            # a table, one row for each operation
    p.flops, p.bytes, p.peak_bytes

What is counted:
    flops   additions, multiplications, comparisons and one for every function such as exp or tanh; a
            multiply-add is 2. Complex numbers count like real ones. The formulas stand in `PRICES`.
    bytes   every array that an operation reads or writes, once; 0 where the result is a view of an argument.
    memory  arrays made by operations and not yet freed. What was there before, and scratch space inside one
            operation, does not count.

The backward pass is counted by the same table: while a profile runs, the rules run as recorded operations.
Kernels step aside, so what is counted is the plain definition of an operation, with any backend.
"""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from minitf.engine import STATE, Array, MinitfError, array_module

if TYPE_CHECKING:
    from rich.table import Table

# A price is called as price(out, values, options) and gives floating-point operations.
Price = Callable[[Any, Any, dict[str, Any]], float]


class PriceError(MinitfError, KeyError):
    """An operation that the table of prices does not know."""

    def __str__(self) -> str:
        return str(self.args[0])


def free(out: Any, values: Any, options: Any) -> float:
    return 0


def each_output(out: Any, values: Any, options: Any) -> float:
    return out.size


def each_input(out: Any, values: Any, options: Any) -> float:
    return values[0].size


def each(times: float) -> Price:
    return lambda out, values, options: times * values[0].size


def added(out: Any, values: Any, options: Any) -> float:
    """One addition for every element of the last array argument."""
    return [v for v in values if hasattr(v, "nbytes")][-1].size


def matmul(out: Any, values: Any, options: Any) -> float:
    """2 n m k"""
    return 2 * out.size * values[0].shape[-1]


def einsum(out: Any, values: Any, options: Any) -> float:
    """The product of all index sizes, times the number of operands."""
    sizes: dict[str, int] = {}
    for label, x in zip(options["subscripts"].split("->")[0].split(","), values, strict=True):
        for letter, n in zip(label, x.shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), n)
    return math.prod(sizes.values()) * len(values)


def axis_of(values: Any, options: dict[str, Any], place: int = 1) -> int:
    """The axis, given by name, or as the argument number `place`, or the last."""
    return options.get("axis", values[place] if len(values) > place else -1)


def fourier(factor: float, place: int = 1) -> Price:
    """factor * n log2 n for each transform of n real or complex samples."""

    def price(out: Any, values: Any, options: Any) -> float:
        axis = axis_of(values, options, place)
        n = max(values[0].shape[axis], out.shape[axis])
        batch = out.size // max(out.shape[axis], 1)
        return factor * batch * n * math.log2(max(n, 1))

    return price


def sorting(out: Any, values: Any, options: Any) -> float:
    """n log2 n comparisons for each row of n."""
    x = values[0]
    return x.size * math.log2(max(x.shape[axis_of(values, options)], 1))


def factored(cubic: Callable[[int, int], float]) -> Price:
    """`cubic(n, m)` for each matrix (n, m), n >= m: the leading terms of the usual algorithm."""

    def price(out: Any, values: Any, options: Any) -> float:
        rows, columns = values[0].shape[-2:]
        return math.prod(values[0].shape[:-2]) * cubic(max(rows, columns), min(rows, columns))

    return price


def solve(out: Any, values: Any, options: Any) -> float:
    """2/3 n^3 for the factors and 2 n^2 for each right side."""
    n = values[0].shape[-1]
    return math.prod(values[0].shape[:-2]) * 2 / 3 * n**3 + 2 * n * out.size


ELEMENTWISE = """
add subtract multiply divide negative pow reciprocal square sqrt rsqrt abs sign floor ceil round
floor_divide remainder maximum minimum where exp expm1 log log1p log2 logaddexp sin cos tan asin acos
atan atan2 sinh cosh tanh sigmoid softplus relu erf equal not_equal less less_equal greater greater_equal
logical_and logical_or logical_xor logical_not bitwise_and bitwise_or bitwise_xor bitwise_invert isfinite
isnan
"""
REDUCTIONS = "sum mean prod max min argmax argmin any all cumsum cumprod"
MOVES = """
copy reshape permute_dims matrix_transpose broadcast_to flip roll concat_parts stack_parts split_parts
pad_constant unfold astype_to to_device straight_through zeros_like ones_like one_hot getitem take_along_axis
put_along_axis real imag conj complex checkpoint
"""

PRICES: dict[str, Price] = {
    # Elementwise operations: one for each element of the result.
    **dict.fromkeys(ELEMENTWISE.split(), each_output),
    # Reductions and scans: one for each element of the argument.
    **dict.fromkeys(REDUCTIONS.split(), each_input),
    # maximum, subtract, exp, sum; then divide, or subtract the logarithm
    "logsumexp": each(4),
    "softmax_rows": each(5),
    "log_softmax": each(5),
    # What only moves, repeats or converts elements.
    **dict.fromkeys(MOVES.split(), free),
    "fold": added,
    "scatter": added,
    "scatter_add": added,
    "matmul": matmul,
    "einsum_pairs": einsum,
    "fft": fourier(5.0),
    "ifft": fourier(5.0),
    "rfft": fourier(2.5),
    "irfft": fourier(2.5, place=2),
    "argsort": sorting,
    "inv": factored(lambda n, m: 2 * n**3),
    "solve": solve,
    "cholesky": factored(lambda n, m: n**3 / 3),
    "qr": factored(lambda n, m: 4 * n * m**2 - 4 / 3 * m**3),
    "svd": factored(lambda n, m: 14 * n * m**2 + 8 * m**3),
}

# These read only the elements that they return, not their whole argument.
GATHERS = frozenset(("getitem", "take_along_axis"))


@dataclass
class Row:
    """What one operation cost: how often it ran, floating-point operations, bytes read and written."""

    name: str
    calls: int = 0
    flops: int = 0
    bytes: int = 0


class Profile:
    """Counts of everything that ran inside `with profile() as p`. Readable inside the block too.

    Attributes:
        live_bytes: memory of the arrays that operations made and that are alive now.
        peak_bytes: the largest value that `live_bytes` had.
    """

    def __init__(self) -> None:
        self.live_bytes = 0
        self.peak_bytes = 0
        self._rows: dict[str, Row] = {}
        self._alive: dict[int, weakref.ref[Any]] = {}

    @property
    def rows(self) -> list[Row]:
        """One row for each operation, the most expensive first."""
        return sorted(self._rows.values(), key=lambda row: (-row.flops, -row.bytes, row.name))

    @property
    def flops(self) -> int:
        """All floating-point operations."""
        return sum(row.flops for row in self._rows.values())

    @property
    def bytes(self) -> int:
        """All bytes read and written."""
        return sum(row.bytes for row in self._rows.values())

    @property
    def calls(self) -> int:
        """How many operations ran."""
        return sum(row.calls for row in self._rows.values())

    def count(self, name: str, values: Any, options: dict[str, Any], out: Any) -> None:
        """Add one operation. The engine calls this.

        Raises:
            PriceError: an operation that `PRICES` does not know.
        """
        if name not in PRICES:
            raise PriceError(
                f"no price for operation {name!r}: give minitf.profile.PRICES a formula for its FLOPs"
            )
        first = out[0] if isinstance(out, tuple) else out
        made = [part for part in (out if isinstance(out, tuple) else (out,)) if part is not None]
        row = self._rows.setdefault(name, Row(name))
        row.calls += 1
        row.flops += round(PRICES[name](first, values, options))
        given = {id(owner(v)): v for v in values if is_array(v)}
        known = given.keys() | self._alive.keys()
        fresh = [part for part in made if is_array(part) and id(owner(part)) not in known]
        if fresh:
            read = 0 if name in GATHERS else sum(min(v.nbytes, owner(v).nbytes) for v in given.values())
            written = sum(part.nbytes for part in fresh)
            row.bytes += written + (written if name in GATHERS else read)
        for part in fresh:
            self._watch(owner(part))
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def _watch(self, a: Array) -> None:
        key, size = id(a), a.nbytes
        if key in self._alive:
            return

        def freed(_: Any) -> None:
            if self._alive.pop(key, None) is not None:
                self.live_bytes -= size

        self._alive[key] = weakref.ref(a, freed)
        self.live_bytes += size

    def to_json(self) -> str:
        """Everything as JSON: totals, and a list of rows."""
        totals = {
            "flops": self.flops,
            "bytes": self.bytes,
            "peak_bytes": self.peak_bytes,
            "calls": self.calls,
        }
        return json.dumps({**totals, "rows": [asdict(row) for row in self.rows]}, indent=2)

    def table(self) -> Table:
        """The rows as a rich table, the most expensive first, and the totals."""
        from rich.table import Table

        table = Table(caption=f"peak memory of results: {self.peak_bytes:,} bytes")
        table.add_column("operation")
        for title in ("calls", "FLOPs", "bytes", "FLOPs / byte"):
            table.add_column(title, justify="right")
        for row in [*self.rows, Row("total", self.calls, self.flops, self.bytes)]:
            if row.name == "total":
                table.add_section()
            intensity = f"{row.flops / row.bytes:.2f}" if row.bytes else ""
            table.add_row(row.name, f"{row.calls:,}", f"{row.flops:,}", f"{row.bytes:,}", intensity)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        Console(file=text, width=100).print(self.table())
        return text.getvalue()


def is_array(v: Any) -> bool:
    return isinstance(v, array_module(v).ndarray)


def owner(a: Array) -> Array:
    """The array whose memory `a` looks at: `a` itself, unless it is a view."""
    root, base = a, a.base
    while base is not None:
        # Between a view and its owner there may be objects that are no arrays.
        root = base if isinstance(base, type(a)) else root
        base = getattr(base, "base", None)
    return root


@contextmanager
def profile() -> Iterator[Profile]:
    """Count the operations inside the block; see the module's text for what is counted.

    Profiles nest, and work together with `detect_anomaly`.

    Raises:
        PriceError: inside the block, for an operation without a price.
    """
    p = Profile()
    before = STATE.watch

    def watch(name: str, values: Any, options: dict[str, Any], out: Any) -> None:
        p.count(name, values, options, out)
        if before is not None:
            before(name, values, options, out)

    STATE.watch = watch
    try:
        yield p
    finally:
        STATE.watch = before
