"""Lanes: the few neighbouring values that one CUDA thread moves at a time, as one number.

A kernel makes its first lanes with `lanes(value, V)`; everything after takes its width from some
lanes `like`. `load(x, i, like)` reads x[i : i + V] in one access and widens it to float32 (float64
for float64 arrays); `store(x, i, v)` rounds to the array's type. Both need i to be a multiple of V
and x to be aligned to 16 bytes; `load_any` and `store_any` do not. In between, lanes add, subtract,
multiply and divide like numbers, with each other and with plain numbers. On a device they are an
LLVM vector, in the simulator a NumPy array.

Arrays of uint16 hold bfloat16 bits: neither numba's arrays nor the simulator know that type.
"""

import math
import operator

import numpy as np
from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)

if SIMULATED:

    def _memory(x):
        """The NumPy array behind a kernel argument or a shared array."""
        while not isinstance(x, np.ndarray):
            x = x.__dict__["_item"] if "_item" in x.__dict__ else x.__dict__["_ary"]
        return x

    def _span(x, i, V):
        memory = _memory(x)
        i = int(i)
        if i < 0 or i + V > memory.size:
            raise IndexError(f"lanes {i}..{i + V} of an array of {memory.size}")
        return memory[i : i + V]

    def load_any(x, i, like):
        """Lanes x[i : i + V], widened, from any address."""
        values = _span(x, i, like.size)
        if values.dtype == np.uint16:
            return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values.astype(np.float64 if values.dtype == np.float64 else np.float32)

    def load(x, i, like):
        """Lanes x[i : i + V], widened, in one access."""
        if i % like.size:
            raise IndexError(f"{like.size} lanes at {i}")
        return load_any(x, i, like)

    load_fresh = load_any

    def store_any(x, i, v):
        """x[i : i + V] = v, rounded to the type of x, at any address."""
        target = _span(x, i, v.size)
        if target.dtype == np.uint16:
            bits = v.view(np.uint32).astype(np.uint64)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            v = np.where(np.isnan(v), 0x7FFF, rounded)
        target[:] = v.astype(target.dtype)

    def store(x, i, v):
        """x[i : i + V] = v, rounded to the type of x, in one access."""
        if i % v.size:
            raise IndexError(f"{v.size} lanes at {i}")
        store_any(x, i, v)

    def lanes(value, V):
        """V lanes of one value."""
        return np.full(V, value)

    def spread(value, like):
        """The number `value`, converted to the lanes' type, in every lane."""
        return np.full_like(like, value)

    def widened(v):
        """The same lanes in float64."""
        return v.astype(np.float64)

    def width(v):
        """How many lanes there are."""
        return v.size

    def lane(v, k):
        """Value of lane k."""
        return v[k]

    def with_lane(v, k, value):
        """Lanes v with lane k replaced."""
        changed = v.copy()
        changed[k] = value
        return changed

    def lane_sum(v):
        """Sum of the lanes, in every lane."""
        total = v[0]
        for k in range(1, v.size):
            total = total + v[k]
        return np.full_like(v, total)

    def fma(a, b, c):
        """a * b + c, rounded once (twice, in rare cases: enough for float32 in the simulator)."""
        return (a.astype(np.float64) * b + c).astype(a.dtype)

    exp, log, sqrt, tanh = np.exp, np.log, np.sqrt, np.tanh

    def normal(v):
        """The normal distribution."""
        wide = [0.5 * math.erfc(-x / math.sqrt(2)) for x in v.tolist()]
        return np.array(wide, v.dtype)

    def positive_part(v):
        """max(v, 0), NaN kept."""
        return np.where(v < 0, v.dtype.type(0), v)

    def choose(x, a, b):
        """The lanes of a where x > 0, else those of b."""
        return np.where(x > 0, a, b)

    def finite_part(v):
        """The lanes of v that are finite, else 0."""
        return np.where(np.isfinite(v), v, v.dtype.type(0))

else:
    from llvmlite import ir
    from numba.cuda import cgutils, models, types
    from numba.cuda.extending import intrinsic, register_model
    from numba.cuda.typing.templates import infer, infer_global, make_intrinsic_template

    class Lanes(types.Type):
        """V values of a floating type."""

        def __init__(self, dtype, V):
            self.dtype, self.V = dtype, V
            super().__init__(name=f"Lanes({dtype}, {V})")

    @register_model(Lanes)
    class _LanesModel(models.PrimitiveModel):
        def __init__(self, manager, fe_type):
            scalar = manager.lookup(fe_type.dtype).get_value_type()
            super().__init__(manager, fe_type, ir.VectorType(scalar, fe_type.V))

    _I16, _I32 = ir.IntType(16), ir.IntType(32)
    _HALF, _FLOAT = ir.HalfType(), ir.FloatType()

    # ------------------------------------------------------------ memory

    def _wide(dtype):
        return types.float64 if dtype == types.float64 else types.float32

    def _element(context, dtype):
        """LLVM type of an element in memory."""
        return _HALF if dtype == types.float16 else context.get_data_type(dtype)

    def _pointer(context, builder, signature, args, kind):
        """Address of element args[1] of array args[0], as a pointer to `kind`."""
        array = signature.args[0]
        data = context.make_array(array)(context, builder, value=args[0]).data
        element = _element(context, array.dtype)
        start = builder.gep(builder.bitcast(data, element.as_pointer()), [args[1]])
        return builder.bitcast(start, kind.as_pointer())

    def _memory_type(context, dtype, V):
        """LLVM vector of V elements in memory; pairs of 16-bit ones travel as 32-bit words."""
        if dtype.bitwidth == 16 and V > 1:
            return ir.VectorType(_I32, V // 2)
        return ir.VectorType(_element(context, dtype), V)

    def _widen(builder, dtype, value, V):
        """What was in memory, as V lanes."""
        if dtype == types.uint8:
            return builder.uitofp(value, ir.VectorType(_FLOAT, V))
        if dtype.bitwidth != 16:
            return value
        out = ir.Constant(ir.VectorType(_FLOAT, V), ir.Undefined)
        for k in range(V):
            word = builder.extract_element(value, _I32(k // 2))
            if V > 1:
                word = builder.trunc(builder.lshr(word, _I32(16 * (k % 2))), _I16)
            if dtype == types.uint16:
                bits = builder.shl(builder.zext(word, _I32), _I32(16))
                wide = builder.bitcast(bits, _FLOAT)
            else:
                wide = builder.fpext(builder.bitcast(word, _HALF), _FLOAT)
            out = builder.insert_element(out, wide, _I32(k))
        return out

    def _round_pair(builder, dtype, high, low):
        """Two float32 rounded to nearest even and packed into 32 bits."""
        name = "bf16x2" if dtype == types.uint16 else "f16x2"
        kind = ir.FunctionType(_I32, [_FLOAT, _FLOAT])
        code = ir.InlineAsm(kind, f"cvt.rn.{name}.f32 $0, $1, $2;", "=r,f,f")
        return builder.call(code, [high, low])

    def _narrow(context, builder, dtype, value, V):
        """V lanes as they lie in memory."""
        if dtype.bitwidth != 16:
            return value
        out = ir.Constant(ir.VectorType(_I32, max(V // 2, 1)), ir.Undefined)
        for k in range(0, V, 2):
            low = builder.extract_element(value, _I32(k))
            high = builder.extract_element(value, _I32(k + 1)) if V > 1 else _FLOAT(0)
            out = builder.insert_element(out, _round_pair(builder, dtype, high, low), _I32(k // 2))
        if V > 1:
            return out
        half = builder.trunc(builder.extract_element(out, _I32(0)), _I16)
        return builder.bitcast(half, _memory_type(context, dtype, 1))

    def _alignment(x, V, anywhere):
        element = x.dtype.bitwidth // 8
        return element if anywhere else min(element * V, 16)

    def _make_load(name, anywhere):
        def define(typing_context, x, i, like):
            result = Lanes(_wide(x.dtype), like.V)

            def generate(context, builder, signature, args):
                kind = _memory_type(context, x.dtype, like.V)
                value = builder.load(_pointer(context, builder, signature, args, kind))
                value.align = _alignment(x, like.V, anywhere)
                return _widen(builder, x.dtype, value, like.V)

            return result(x, types.int64, like), generate

        define.__name__ = name
        return intrinsic(define)

    load = _make_load("load", False)
    load_any = _make_load("load_any", True)

    @intrinsic
    def load_fresh(typing_context, x, i, like):
        """Lanes that another block has written during this launch: past the first-level cache."""
        result = Lanes(x.dtype, like.V)

        def generate(context, builder, signature, args):
            scalar = context.get_value_type(x.dtype)
            pointer = _pointer(context, builder, signature, args, scalar)
            kind = ir.FunctionType(scalar, [scalar.as_pointer()])
            size = x.dtype.bitwidth
            constraints = f"={'d' if size == 64 else 'f'},l"
            code = ir.InlineAsm(kind, f"ld.volatile.f{size} $0, [$1];", constraints, True)
            value = _undefined(result)
            for k in range(like.V):
                one = builder.call(code, [builder.gep(pointer, [_I32(k)])])
                value = builder.insert_element(value, one, _I32(k))
            return value

        return result(x, types.int64, like), generate

    def _make_store(name, anywhere):
        def define(typing_context, x, i, v):
            signature = types.void(x, types.int64, v)

            def generate(context, builder, signature, args):
                value = args[2]
                if v.dtype == types.float64 != x.dtype:
                    value = builder.fptrunc(value, ir.VectorType(_FLOAT, v.V))
                elif v.dtype != x.dtype == types.float64:
                    value = builder.fpext(value, ir.VectorType(ir.DoubleType(), v.V))
                value = _narrow(context, builder, x.dtype, value, v.V)
                pointer = _pointer(context, builder, signature, args, value.type)
                builder.store(value, pointer).align = _alignment(x, v.V, anywhere)
                return context.get_dummy_value()

            return signature, generate

        define.__name__ = name
        return intrinsic(define)

    store = _make_store("store", False)
    store_any = _make_store("store_any", True)

    # ------------------------------------------------------------ making and taking apart

    @intrinsic
    def lanes(typing_context, value, V):
        """V lanes of one value."""
        if not isinstance(V, types.IntegerLiteral):
            return None
        result = Lanes(value, V.literal_value)

        def generate(context, builder, signature, args):
            return _spread(builder, args[0], result)

        return result(value, V), generate

    @intrinsic
    def spread(typing_context, value, like):
        """The number `value`, converted to the lanes' type, in every lane."""

        def generate(context, builder, signature, args):
            return _spread(builder, args[0], like)

        return like(like.dtype, like), generate

    @intrinsic
    def widened(typing_context, v):
        """The same lanes in float64."""
        result = Lanes(types.float64, v.V)

        def generate(context, builder, signature, args):
            if v.dtype == types.float64:
                return args[0]
            return builder.fpext(args[0], ir.VectorType(ir.DoubleType(), v.V))

        return result(v), generate

    @intrinsic
    def width(typing_context, v):
        """How many lanes there are."""

        def generate(context, builder, signature, args):
            return context.get_constant(types.int64, v.V)

        return types.int64(v), generate

    @intrinsic
    def lane(typing_context, v, k):
        """Value of lane k."""

        def generate(context, builder, signature, args):
            return builder.extract_element(args[0], builder.trunc(args[1], _I32))

        return v.dtype(v, types.int64), generate

    @intrinsic
    def with_lane(typing_context, v, k, value):
        """Lanes v with lane k replaced."""

        def generate(context, builder, signature, args):
            return builder.insert_element(args[0], args[2], builder.trunc(args[1], _I32))

        return v(v, types.int64, v.dtype), generate

    @intrinsic
    def lane_sum(typing_context, v):
        """Sum of the lanes, in every lane."""

        def generate(context, builder, signature, args):
            total = builder.extract_element(args[0], _I32(0))
            for k in range(1, v.V):
                total = builder.fadd(total, builder.extract_element(args[0], _I32(k)))
            return _spread(builder, total, v)

        return v(v), generate

    # ------------------------------------------------------------ arithmetic

    def _per_lane(builder, name, result, args):
        """Call a function of the device's mathematics library on each lane."""
        function_name = f"__nv_{name}" + ("" if result.dtype == types.float64 else "f")
        scalar = args[0].type.element
        kind = ir.FunctionType(scalar, [scalar] * len(args))
        function = cgutils.get_or_insert_function(builder.module, kind, function_name)
        out = args[0]
        for k in range(result.V):
            parts = [builder.extract_element(value, _I32(k)) for value in args]
            out = builder.insert_element(out, builder.call(function, parts), _I32(k))
        return out

    def _make_math(name):
        def define(typing_context, v):
            def generate(context, builder, signature, args):
                return _per_lane(builder, name, v, args)

            return v(v), generate

        define.__name__ = name
        return intrinsic(define)

    exp, log, sqrt, tanh, normal = (
        _make_math(name) for name in ("exp", "log", "sqrt", "tanh", "normcdf")
    )

    @intrinsic
    def fma(typing_context, a, b, c):
        """a * b + c, rounded once."""

        def generate(context, builder, signature, args):
            return _per_lane(builder, "fma", a, args)

        return a(a, a, a), generate

    def _undefined(kind):
        scalar = ir.DoubleType() if kind.dtype == types.float64 else _FLOAT
        return ir.Constant(ir.VectorType(scalar, kind.V), ir.Undefined)

    def _spread(builder, value, kind):
        """A scalar in every lane."""
        out = _undefined(kind)
        for k in range(kind.V):
            out = builder.insert_element(out, value, _I32(k))
        return out

    def _register_operator(function, instruction):
        def define(typing_context, a, b):
            kinds = [kind for kind in (a, b) if isinstance(kind, Lanes)]
            if not kinds:
                return None
            result = kinds[0]
            operands = [kind if isinstance(kind, Lanes) else result.dtype for kind in (a, b)]

            def generate(context, builder, signature, args):
                vectors = [
                    value if isinstance(kind, Lanes) else _spread(builder, value, result)
                    for value, kind in zip(args, operands, strict=True)
                ]
                return getattr(builder, instruction)(*vectors)

            return result(*operands), generate

        template = make_intrinsic_template(
            function, define, f"lanes_{instruction}", kwargs={"target": "cuda"}
        )
        infer(template)
        infer_global(function, types.Function(template))

    # There is no `+=`: in the simulator, it would change lanes that go by another name too.
    _register_operator(operator.add, "fadd")
    _register_operator(operator.sub, "fsub")
    _register_operator(operator.mul, "fmul")
    _register_operator(operator.truediv, "fdiv")

    @intrinsic
    def choose(typing_context, x, a, b):
        """The lanes of a where x > 0, else those of b."""

        def generate(context, builder, signature, args):
            x, a, b = args
            return builder.select(builder.fcmp_ordered(">", x, _zeros(x)), a, b)

        return a(x, a, b), generate

    @intrinsic
    def positive_part(typing_context, v):
        """max(v, 0), NaN kept."""

        def generate(context, builder, signature, args):
            zero = _zeros(args[0])
            return builder.select(builder.fcmp_ordered("<", args[0], zero), zero, args[0])

        return v(v), generate

    @intrinsic
    def finite_part(typing_context, v):
        """The lanes of v that are finite, else 0."""

        def generate(context, builder, signature, args):
            # Inf - Inf and NaN - NaN are NaN.
            zero = _zeros(args[0])
            finite = builder.fcmp_ordered("==", builder.fsub(args[0], args[0]), zero)
            return builder.select(finite, args[0], zero)

        return v(v), generate

    def _zeros(value):
        return ir.Constant(value.type, [0.0] * value.type.count)
