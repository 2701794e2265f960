"""Sums over a contiguous run, in an order that is written in the code, at vector speed.

A loop that keeps its sums in an array stores and reloads them at every turn, because the compiler
cannot know that the array is not the input. Here they stay in LLVM vectors of LANES elements (half
as many in float64): the run goes into the lanes round-robin, and at the end the upper half of the
lanes is added to the lower half until one is left, the last eight in float64. Every processor gives
the same bits.
"""

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 32


def _two_sums(arrays, terms):
    """Code for the sums of g and of g * d over first..last of 1-D arrays; shift is a scalar.

    `terms(builder, loaded, shift, zero)` gets one value per array and returns g and d; it is
    emitted for vectors of the shift's type and, where the run is shorter than one vector, for
    scalars of it. Products are added without being rounded themselves.
    """

    def codegen(context, builder, signature, args):
        element = context.get_value_type(signature.args[0].dtype)
        align = context.get_abi_sizeof(element)
        number = context.get_value_type(signature.args[-1])
        # As many bytes in both types: more would not fit the registers.
        lanes = LANES if number == ir.FloatType() else LANES // 2
        vector = ir.VectorType(number, lanes)
        data = [
            context.make_array(kind_)(context, builder, value).data
            for kind_, value in zip(signature.args[:arrays], args[:arrays], strict=True)
        ]
        first, last, shift = args[arrays:]
        shifts = _splat(builder, shift, vector)
        zeros, wide = vector([0.0] * lanes), ir.DoubleType()

        def load(index, form):
            stored = ir.VectorType(element, lanes) if form == vector else element
            found = []
            for pointer in data:
                place = builder.gep(pointer, [index])
                place = builder.bitcast(place, stored.as_pointer())
                found.append(_widened(builder, builder.load(place, align=align), form))
            return found

        def accumulate(sums, g, d):
            total, product = (builder.load(place) for place in sums)
            builder.store(builder.fadd(total, g), sums[0])
            builder.store(_fused(builder, g, d, product), sums[1])

        results = [cgutils.alloca_once_value(builder, wide(0.0)) for _ in range(2)]
        width = first.type(lanes)
        size = builder.sub(last, first)
        with builder.if_else(builder.icmp_signed("<", size, width)) as (short, long):
            with short:
                zero = number(0.0)
                sums = [cgutils.alloca_once_value(builder, zero) for _ in range(2)]
                with cgutils.for_range_slice(builder, first, last, size.type(1)) as (at, _):
                    accumulate(sums, *terms(builder, load(at, number), shift, zero))
                for total, result in zip(sums, results, strict=True):
                    builder.store(_widened(builder, builder.load(total), wide), result)
            with long:
                sums = [cgutils.alloca_once_value(builder, zeros) for _ in range(2)]
                rest = builder.srem(size, width)
                whole = builder.sub(last, rest)
                with cgutils.for_range_slice(builder, first, whole, width) as (at, _):
                    accumulate(sums, *terms(builder, load(at, vector), shifts, zeros))
                # The last whole vector once more, without the elements that are counted already.
                g, d = terms(builder, load(builder.sub(last, width), vector), shifts, zeros)
                lane = ir.VectorType(size.type, lanes)
                fresh = builder.icmp_signed(
                    ">=", lane(list(range(lanes))), _splat(builder, builder.sub(width, rest), lane)
                )
                accumulate(sums, *(builder.select(fresh, value, zeros) for value in (g, d)))
                for total, result in zip(sums, results, strict=True):
                    builder.store(_reduce(builder, builder.load(total)), result)
        return context.make_tuple(
            builder, signature.return_type, [builder.load(r) for r in results]
        )

    def typed(kind, shift):
        operands = [types.Array(kind, 1, "C")] * arrays
        sums = types.UniTuple(types.float64, 2)
        return sums(*operands, types.intp, types.intp, shift), codegen

    return typed


def _splat(builder, value, vector):
    first = builder.insert_element(vector(ir.Undefined), value, ir.IntType(32)(0))
    order = ir.VectorType(ir.IntType(32), vector.count)([0] * vector.count)
    return builder.shuffle_vector(first, vector(ir.Undefined), order)


def _widened(builder, value, form):
    return value if value.type == form else builder.fpext(value, form)


def _reduce(builder, vector):
    """Add the upper half of the lanes to the lower until one is left, the last eight in float64."""
    width = vector.type.count
    while width > 1:
        if width == 8:
            vector = _widened(builder, vector, ir.VectorType(ir.DoubleType(), width))
        width //= 2
        half = ir.VectorType(ir.IntType(32), width)
        low, high = (
            builder.shuffle_vector(vector, vector, half(list(range(at, at + width))))
            for at in (0, width)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.IntType(32)(0))


def _fused(builder, a, b, c):
    """a * b + c, rounded once."""
    kind, count = a.type, getattr(a.type, "count", "")
    bits = 32 if getattr(kind, "element", kind) == ir.FloatType() else 64
    name = f"llvm.fma.{f'v{count}' if count else ''}f{bits}"
    function = ir.FunctionType(kind, [kind] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [a, b, c])


def _squares(builder, loaded, shift, zero):
    d = builder.fsub(loaded[0], shift)
    return d, d


def _products(builder, loaded, shift, zero):
    g, x = loaded
    return g, builder.fsub(x, shift)


def _masked_products(builder, loaded, shift, zero):
    dy, x, y = loaded
    g = builder.select(builder.fcmp_ordered(">", y, zero), dy, zero)
    return g, builder.fsub(x, shift)


def _scaled_products(builder, loaded, shift, zero):
    dy, scale, x = loaded
    return builder.fmul(dy, scale), builder.fsub(x, shift)


_SQUARES = _two_sums(1, _squares)
_PRODUCTS = _two_sums(2, _products)
_MASKED_PRODUCTS = _two_sums(3, _masked_products)
_SCALED_PRODUCTS = _two_sums(3, _scaled_products)


def _or_in_python(plain):
    """Make an intrinsic of a typing function, or use `plain` where nothing is compiled."""
    return lambda typed: plain if config.DISABLE_JIT else intrinsic(typed)


def _sums_in_python(g, d):
    return g.sum(dtype=np.float64), (g * d).sum(dtype=np.float64)


@_or_in_python(lambda x, i, k, shift: _sums_in_python(x[i:k] - shift, x[i:k] - shift))
def sum_squares(typingctx, x, first, last, shift):
    """sum(x - shift) and sum((x - shift)**2) over first..last."""
    return _SQUARES(x.dtype, shift)


@_or_in_python(lambda dy, x, i, k, shift: _sums_in_python(dy[i:k], x[i:k] - shift))
def sum_products(typingctx, dy, x, first, last, shift):
    """sum(dy) and sum(dy * (x - shift)) over first..last."""
    return _PRODUCTS(x.dtype, shift)


@_or_in_python(
    lambda dy, x, y, i, k, shift: _sums_in_python(np.where(y[i:k] > 0, dy[i:k], 0), x[i:k] - shift)
)
def sum_masked_products(typingctx, dy, x, y, first, last, shift):
    """sum(dy) and sum(dy * (x - shift)) over the elements of first..last where y > 0."""
    return _MASKED_PRODUCTS(x.dtype, shift)


@_or_in_python(lambda dy, s, x, i, k, shift: _sums_in_python(dy[i:k] * s[i:k], x[i:k] - shift))
def sum_scaled_products(typingctx, dy, scale, x, first, last, shift):
    """sum(dy * scale) and sum(dy * scale * (x - shift)) over first..last."""
    return _SCALED_PRODUCTS(x.dtype, shift)
