"""Parts of a loop on the threads.

    share_out(part, cut, a, b, ...)          part(p, cut, a, b, ...) for each p = 0 ... cut - 1

For functions of `runtime.jit`; `part` is one of `runtime.inner`. It does what `for p in prange(cut)` does and
compiles in a third of the time: `prange` makes four functions of its body, each around the one before.

The arguments lie in a struct on the caller's stack, and a small function runs the parts from p to p + n with
them. For cut = 1 the caller calls it; else the threads of Numba's pool do, by the entry that `prange` uses:

    numba_parallel_for(body, arrays, sizes, steps, data, axes, count, threads)
    body(arrays, sizes, steps, data)         for each piece of range(sizes[0])

The pool adds p * steps[0] to the address arrays[0] if that is not null: address 1 and step 1 give p + 1.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD, BYTE, VOID = ir.IntType(64), ir.IntType(8).as_pointer(), ir.VoidType()
BODY = ir.FunctionType(VOID, [BYTE.as_pointer(), WORD.as_pointer(), WORD.as_pointer(), BYTE])
LAUNCH = ir.FunctionType(VOID, [BYTE] * 5 + [WORD] * 3)


@intrinsic  # type: ignore[untyped-decorator]
def share_out(typing, part, cut, *values):  # type: ignore[no-untyped-def]
    given = (types.int64, types.int64, *map(types.unliteral, values))
    typing.resolve_function_type(part, given, {})
    compiled = part.dispatcher.overloads[given]

    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        context.add_linking_libs([compiled.library])
        _, cut, packed = args
        # A place for "a part failed" first, then the arguments.
        data = cgutils.alloca_once_value(builder, cgutils.pack_struct(builder, [WORD(0), cut, packed]))
        name = builder.module.get_unique_name(builder.function.name + ".parts")
        body = body_of(context, builder.module, name, compiled, data.type)

        def address(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), BYTE)

        begin, one, sizes = address(WORD(1).inttoptr(BYTE)), address(WORD(1)), address(cut)
        with builder.if_else(builder.icmp_signed("==", cut, WORD(1))) as (alone, shared):
            with alone:
                pointers = [
                    builder.bitcast(x, t) for x, t in zip((begin, one, one, data), BODY.args, strict=True)
                ]
                builder.call(body, pointers)
            with shared:
                launch = cgutils.get_or_insert_function(builder.module, LAUNCH, "numba_parallel_for")
                count = cgutils.get_or_insert_function(
                    builder.module, ir.FunctionType(WORD, []), "get_num_threads"
                )
                pointers = [builder.bitcast(x, BYTE) for x in (body, begin, sizes, one, data)]
                # Other Python threads may run meanwhile.
                python = context.get_python_api(builder)
                state = python.save_thread()
                builder.call(launch, [*pointers, WORD(0), WORD(1), builder.call(count, [])])
                python.restore_thread(state)
        failed = builder.load(cgutils.gep_inbounds(builder, data, 0, 0))
        with cgutils.if_unlikely(builder, builder.icmp_signed("!=", failed, WORD(0))):
            context.call_conv.return_user_exc(builder, RuntimeError, ("a part of a kernel failed",))
        return context.get_dummy_value()

    return types.void(part, types.int64, types.Tuple(given[2:])), generate


def body_of(context, module, name, compiled, kind):  # type: ignore[no-untyped-def]
    """The function that runs some of the parts; `kind` is the type of a pointer to their arguments."""
    body = ir.Function(module, BODY, name)
    body.linkage = "internal"
    builder = ir.IRBuilder(body.append_basic_block())
    first = builder.sub(builder.ptrtoint(builder.load(body.args[0]), WORD), WORD(1))
    count = builder.load(body.args[1])
    data = builder.bitcast(body.args[3], kind)
    _, cut, packed = cgutils.unpack_tuple(builder, builder.load(data))
    kinds, values = compiled.signature.args[2:], cgutils.unpack_tuple(builder, packed)
    values = [lent(context, builder, *pair) for pair in zip(kinds, values, strict=True)]
    with cgutils.for_range(builder, count) as loop:
        given = [builder.add(first, loop.index), cut, *values]
        status, _ = context.call_internal_no_propagate(builder, compiled.fndesc, compiled.signature, given)
        with cgutils.if_unlikely(builder, status.is_error):
            builder.store(WORD(1), cgutils.gep_inbounds(builder, data, 0, 0))
    builder.ret_void()
    return body


def lent(context, builder, kind, value):  # type: ignore[no-untyped-def]
    """`value` with arrays without owner: else every slice counts references, one thread after the other."""
    if isinstance(kind, types.BaseTuple):
        inside = cgutils.unpack_tuple(builder, value)
        lent_inside = [lent(context, builder, kind[i], part) for i, part in enumerate(inside)]  # type: ignore[index]
        return context.make_tuple(builder, kind, lent_inside)
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        return array._getvalue()
    return value
