"""Sums over a contiguous run, in an order that is written in the code, at vector speed; prefetch.

A loop that keeps its sums in an array stores and reloads them at every turn, because the compiler
cannot know that the array is not the input. Here they stay in LLVM vectors of LANES elements: the
run goes into the lanes round-robin, and at the end the upper half of the lanes is added to the
lower half until one is left, the last eight in float64. Every processor gives the same bits.
"""

import numpy as np
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 32
CACHE_LINE = 64


def _two_sums(arrays, terms, mean=False):
    """Code for two sums of `terms` over first..last of 1-D arrays; shift is a scalar.

    `terms(builder, loaded, shift, zero)` gets one value per array and returns the two summands; it
    is emitted for vectors of the shift's type and, where the run is shorter than one vector, for
    scalars of it. With `mean`, the first sum is that of the array less the shift, which
    has float64 lanes: the mean of float32 values is then as good as exact.
    """

    def codegen(context, builder, signature, args):
        element = context.get_value_type(signature.args[0].dtype)
        align = context.get_abi_sizeof(element)
        number = context.get_value_type(signature.args[-1])
        vector = ir.VectorType(number, LANES)
        data = [
            context.make_array(kind_)(context, builder, value).data
            for kind_, value in zip(signature.args[:arrays], args[:arrays], strict=True)
        ]
        first, last, shift = args[arrays:]
        shifts = _splat(builder, shift, vector)
        wide = ir.DoubleType()
        # float64 holds sums of float32 values so well that the shift can wait for the end.
        exact = mean and number != wide

        def load(index, form):
            stored = ir.VectorType(element, LANES) if form == vector else element
            found = []
            for pointer in data:
                place = builder.gep(pointer, [index])
                place = builder.bitcast(place, stored.as_pointer())
                found.append(_widened(builder, builder.load(place, align=align), form))
            return found

        def zero(form):
            return form([0.0] * LANES) if isinstance(form, ir.VectorType) else form(0.0)

        def summands(at, form, shift):
            loaded = load(at, form)
            first_term, second = terms(builder, loaded, shift, zero(form))
            if exact:
                first_term = _widened(builder, loaded[0], _like(form, wide))
            return first_term, second

        def start(form):
            forms = (_like(form, wide) if exact else form), form
            return [cgutils.alloca_once_value(builder, zero(form)) for form in forms]

        def accumulate(sums, values):
            for total, value in zip(sums, values, strict=True):
                builder.store(builder.fadd(builder.load(total), value), total)

        results = [cgutils.alloca_once_value(builder, wide(0.0)) for _ in range(2)]
        width = first.type(LANES)
        size = builder.sub(last, first)
        with builder.if_else(builder.icmp_signed("<", size, width)) as (short, long):
            with short:
                sums = start(number)
                with cgutils.for_range_slice(builder, first, last, size.type(1)) as (at, _):
                    accumulate(sums, summands(at, number, shift))
                for total, result in zip(sums, results, strict=True):
                    builder.store(_widened(builder, builder.load(total), wide), result)
            with long:
                sums = start(vector)
                rest = builder.srem(size, width)
                whole = builder.sub(last, rest)
                with cgutils.for_range_slice(builder, first, whole, width) as (at, _):
                    accumulate(sums, summands(at, vector, shifts))
                # The last LANES elements once more, without those that are counted already.
                tail = summands(builder.sub(last, width), vector, shifts)
                lane = ir.VectorType(size.type, LANES)
                fresh = builder.icmp_signed(
                    ">=", lane(list(range(LANES))), _splat(builder, builder.sub(width, rest), lane)
                )
                accumulate(sums, [builder.select(fresh, value, zero(value.type)) for value in tail])
                for total, result in zip(sums, results, strict=True):
                    builder.store(_reduce(builder, builder.load(total)), result)
        total, other = (builder.load(result) for result in results)
        if exact:
            shifted = builder.fmul(builder.sitofp(size, wide), _widened(builder, shift, wide))
            total = builder.fsub(total, shifted)
        return context.make_tuple(builder, signature.return_type, [total, other])

    def typed(kind, shift):
        operands = [types.Array(kind, 1, "C")] * arrays
        sums = types.UniTuple(types.float64, 2)
        return sums(*operands, types.intp, types.intp, shift), codegen

    return typed


def _splat(builder, value, vector):
    first = builder.insert_element(vector(ir.Undefined), value, ir.IntType(32)(0))
    order = ir.VectorType(ir.IntType(32), LANES)([0] * LANES)
    return builder.shuffle_vector(first, vector(ir.Undefined), order)


def _like(form, number):
    """The type `form`, a vector or a scalar, with elements of the type `number`."""
    return ir.VectorType(number, form.count) if isinstance(form, ir.VectorType) else number


def _widened(builder, value, form):
    return value if value.type == form else builder.fpext(value, form)


def _reduce(builder, vector):
    """Add the upper half of the lanes to the lower until one is left, the last eight in float64."""
    width = LANES
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


def _squares(builder, loaded, shift, zero):
    d = builder.fsub(loaded[0], shift)
    return d, builder.fmul(d, d)


def _products(builder, loaded, shift, zero):
    g, x = loaded
    return g, builder.fmul(g, builder.fsub(x, shift))


def _masked_products(builder, loaded, shift, zero):
    dy, x, y = loaded
    g = builder.select(builder.fcmp_ordered(">", y, zero), dy, zero)
    return g, builder.fmul(g, builder.fsub(x, shift))


def _scaled_products(builder, loaded, shift, zero):
    dy, scale, x = loaded
    g = builder.fmul(dy, scale)
    return g, builder.fmul(g, builder.fsub(x, shift))


_SQUARES = _two_sums(1, _squares, mean=True)
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
    """sum(x - shift), its lanes in float64, and sum((x - shift)**2) over first..last."""
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


@_or_in_python(lambda x, first, nbytes: None)
def prefetch(typingctx, x, first, nbytes):
    """Ask for so many bytes from byte `first` of x on, without waiting; they may lie outside it."""

    def codegen(context, builder, signature, args):
        byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        data = builder.bitcast(data, byte)
        stop = builder.add(args[1], args[2])
        with cgutils.for_range_slice(builder, args[1], stop, args[1].type(CACHE_LINE)) as (at, _):
            # For reading, into every cache, data.
            builder.call(ask, [builder.gep(data, [at]), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.none(x, types.intp, types.intp), codegen
