"""Matrix products inside kernels: the BLAS that NumPy brought, called from compiled code on one thread.

    gemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)        C = alpha op(A) op(B) + beta C

All matrices are row-major: op(A) is m x k, op(B) k x n, C m x n; op transposes where ta or tb is 1. `a`, `b`
and `c` are arrays whose first element is the first of the matrix, `lda`, `ldb`, `ldc` the distance of
neighbouring rows in elements. BLAS thinks in columns, so it is asked for C^T = op(B)^T op(A)^T.

The routine is found by its symbol in the library that NumPy has loaded already, or else in SciPy's public
table of BLAS routines. It is linked by name, so that compiled kernels can be kept on disk.
"""

from __future__ import annotations

import ctypes
from functools import cache

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .runtime import inner
from .threads import blas_pool

# Names of the Fortran routine in the builds that NumPy is distributed with; `{}` is s or d.
SYMBOLS = ("scipy_{}gemm_64_", "scipy_{}gemm_", "{}gemm_64_", "{}gemm_")


@cache
def address(kind: str) -> int | None:
    """Where sgemm ("s") or dgemm ("d") is in memory."""
    pool = blas_pool()
    if pool is not None:
        library = ctypes.CDLL(pool.filepath)
        for name in SYMBOLS:
            if hasattr(library, name.format(kind)):
                return ctypes.cast(getattr(library, name.format(kind)), ctypes.c_void_p).value
    try:
        from numba.extending import get_cython_function_address

        found: int = get_cython_function_address("scipy.linalg.cython_blas", f"{kind}gemm")
    except ImportError:
        return None
    return found


for _kind in "sd":
    if address(_kind):
        llvmlite.binding.add_symbol(f"minitf_{_kind}gemm", address(_kind))

# None, or a sentence saying why no BLAS can be called.
MISSING = None if all(map(address, "sd")) else "no BLAS routine was found that a kernel can call"


@intrinsic  # type: ignore[untyped-decorator]
def call(typing, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):  # type: ignore[no-untyped-def]
    real = c.dtype
    if real not in (types.float32, types.float64) or a.dtype != real or b.dtype != real:
        raise TypeError("gemm takes three arrays of float32 or of float64")
    size = types.int64
    signature = types.void(size, size, size, size, size, real, a, size, b, size, real, c, size)

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc = args
        byte, word = ir.IntType(8), ir.IntType(64)
        number = context.get_data_type(real)

        def place(value):  # type: ignore[no-untyped-def]
            return builder.bitcast(cgutils.alloca_once_value(builder, value), byte.as_pointer())

        def letter(transposed):  # type: ignore[no-untyped-def]
            flag = builder.icmp_signed("!=", transposed, word(0))
            return place(builder.select(flag, byte(ord("T")), byte(ord("N"))))

        def first(kind, value):  # type: ignore[no-untyped-def]
            data = context.make_array(kind)(context, builder, value).data
            return builder.bitcast(data, byte.as_pointer())

        kinds = dict(zip("abc", (signature.args[6], signature.args[8], signature.args[11]), strict=True))
        pointers = [
            letter(tb), letter(ta), place(n), place(m), place(k), place(alpha),
            first(kinds["b"], b), place(ldb), first(kinds["a"], a), place(lda),
            place(beta), first(kinds["c"], c), place(ldc),
        ]  # fmt: skip
        name = "minitf_sgemm" if number == ir.FloatType() else "minitf_dgemm"
        routine = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte.as_pointer()] * 13), name
        )
        builder.call(routine, pointers)
        return context.get_dummy_value()

    return signature, generate


@inner
def gemm(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):  # type: ignore[no-untyped-def]
    if m > 0 and n > 0:
        call(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)  # type: ignore[call-arg]
