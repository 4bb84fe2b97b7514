"""Vectors in registers, for loops whose accumulators must not leave them.

A vector has 64 bytes: 16 float32 or 8 float64. Where registers are shorter, LLVM takes several.

    lanes(x)                       how many elements of x a vector has: a constant, which x.itemsize is not
    load(x, i)  store(x, i, v)     elements i, i + 1, ... of a contiguous 1-D array; nothing is checked
    spread(x, i)                   one element of it in every lane
    prefetch(x, i)                 ask for the cache line of an element, which may lie outside the array
    zeros(x)                       zero lanes of the type of x
    mul(a, b), add(a, b), negative(a)   lane by lane
    fma(a, b, c)                   a b + c lane by lane, fused where the processor can
    total(v)                       the sum of the lanes, in a fixed order
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

BYTES = 64
# Called from compiled code without the typing context that Python code would see.
operation: Any = intrinsic


class Lanes(types.Type):  # type: ignore[misc]
    """The type of a vector; `real` is that of its elements."""

    def __init__(self, real: Any):
        self.real, self.count = real, BYTES * 8 // real.bitwidth
        super().__init__(name=f"Lanes({real})")


def vector(real: Any) -> Any:
    element = ir.FloatType() if real == types.float32 else ir.DoubleType()
    return ir.VectorType(element, BYTES * 8 // real.bitwidth)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any):
        super().__init__(manager, kind, vector(kind.real))


def place(context, builder, kind, x, i):  # type: ignore[no-untyped-def]
    """Where element i of the array x is."""
    return builder.gep(context.data_model_manager[kind].get(builder, x, "data"), [i])


def repeated(builder, value, shape):  # type: ignore[no-untyped-def]
    first = builder.insert_element(ir.Constant(shape, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), shape.count), [0] * shape.count)
    return builder.shuffle_vector(first, ir.Constant(shape, ir.Undefined), mask)


@operation
def lanes(typing, x):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return context.get_constant(types.int64, vector(signature.args[0].dtype).count)

    return types.int64(x), generate


@operation
def load(typing, x, i):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = signature.args[0]
        start = place(context, builder, kind, *args)
        wide = builder.bitcast(start, vector(kind.dtype).as_pointer())
        return builder.load(wide, align=kind.dtype.bitwidth // 8)

    return Lanes(x.dtype)(x, types.int64), generate


@operation
def store(typing, x, i, v):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = signature.args[0]
        start = place(context, builder, kind, *args[:2])
        wide = builder.bitcast(start, vector(kind.dtype).as_pointer())
        builder.store(args[2], wide, align=kind.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(x, types.int64, v), generate


@operation
def prefetch(typing, x, i):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        start = builder.bitcast(place(context, builder, signature.args[0], *args), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        # For reading, into every cache, data.
        builder.call(call, [start, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(x, types.int64), generate


@operation
def spread(typing, x, i):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kind = signature.args[0]
        return repeated(builder, builder.load(place(context, builder, kind, *args)), vector(kind.dtype))

    return Lanes(x.dtype)(x, types.int64), generate


@operation
def zeros(typing, x):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return ir.Constant(vector(signature.args[0].dtype), None)

    return Lanes(x.dtype)(x), generate


@operation
def mul(typing, a, b):  # type: ignore[no-untyped-def]
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args)


@operation
def add(typing, a, b):  # type: ignore[no-untyped-def]
    return a(a, b), lambda context, builder, signature, args: builder.fadd(*args)


@operation
def negative(typing, a):  # type: ignore[no-untyped-def]
    return a(a), lambda context, builder, signature, args: builder.fneg(*args)


@operation
def fma(typing, a, b, c):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        shape = vector(signature.args[0].real)
        name = f"llvm.fmuladd.v{shape.count}f{signature.args[0].real.bitwidth}"
        kind = ir.FunctionType(shape, [shape] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return a(a, b, c), generate


@operation
def total(typing, v):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        (x,) = args
        count = x.type.count
        while count > 1:
            count //= 2
            halves = [
                builder.shuffle_vector(
                    x,
                    ir.Constant(x.type, ir.Undefined),
                    ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(s, s + count))),
                )
                for s in (0, count)
            ]
            x = builder.fadd(*halves)
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return v.real(v), generate
