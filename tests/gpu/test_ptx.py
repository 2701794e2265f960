"""The PTX interpreter that other tests rely on: its arithmetic, and what it must find."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from tests.gpu import ptx
from tests.gpu.ptx_ops import operation

RNG = np.random.default_rng(3)
SPECIAL = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4e38, 65520.0]


def kernel(body: str, parameters: int = 1, declarations: str = "") -> str:
    """A kernel whose %rd<k> are its parameters and whose %r1 is the thread's number."""
    names = ", ".join(f".param .u64 p{k}" for k in range(parameters))
    loads = "\n".join(f"ld.param.u64 %rd{k}, [p{k}];" for k in range(parameters))
    return f"""
.version 9.0
.target sm_90
.address_size 64
{declarations}
.visible .entry kernel({names})
{{
    .reg .pred %p<9>;
    .reg .b16 %h<9>;
    .reg .b32 %r<9>;
    .reg .f32 %f<9>;
    .reg .b64 %rd<29>;
    mov.u32 %r1, %tid.x; // a comment
    {loads}
    {body}
    ret;
}}
"""


def run(body, *arrays, threads=8, grid=1, declarations="", **options):
    """Launch such a kernel on arrays; %rd1<k> are the addresses of the thread's own elements."""
    own = "".join(
        f"mul.wide.u32 %rd20, %r1, {array.itemsize}; add.s64 %rd1{k}, %rd{k}, %rd20;"
        for k, array in enumerate(arrays)
    )
    program = ptx.Program(kernel(own + body, len(arrays), declarations))
    values = [struct.pack("Q", program.memory.add(a, f"array {k}")) for k, a in enumerate(arrays)]
    program.launch("kernel", (grid,), (threads,), values, **options)


def compute(opcode, *values):
    """An operation on arrays of its types."""
    found = operation(opcode)
    with np.errstate(all="ignore"):
        return found.compute(
            *(np.asarray(v).astype(t) for v, t in zip(values, found.sources, strict=True))
        )


# ---------------------------------------------------------------------------- arithmetic


def rounded(exact: Fraction, near: float, dtype, mode: str):
    """The neighbour of `near` that an exact value rounds to."""
    steps = [np.nextafter(dtype(near), dtype(s * np.inf)) for s in (-1, 1)] + [dtype(near)]
    if mode == "rn":
        return min(steps, key=lambda x: (abs(Fraction(float(x)) - exact), x.view("u4") & 1))
    below = max(x for x in steps if Fraction(float(x)) <= exact)
    above = min(x for x in steps if Fraction(float(x)) >= exact)
    return {"rm": below, "rp": above, "rz": below if exact > 0 else above}[mode]


@pytest.mark.parametrize("mode", ["rn", "rm", "rp", "rz"])
def test_fma_rounds_once(mode):
    a, b = RNG.standard_normal((2, 600)).astype(np.float32)
    # Sums that cancel, that tie, and that a tiny product decides: rounding twice fails on these.
    c = np.concatenate([
        RNG.standard_normal(200), -(a[200:400].astype(float) * b[200:400]), np.full(200, 1 + 2**-23)
    ]).astype(np.float32)  # fmt: skip
    a[400:], b[400:] = 2**-24, np.float32(1) + RNG.choice([-1, 0, 1], 200) * np.float32(2**-23)
    for x, y, z, got in zip(a, b, c, compute(f"fma.{mode}.f32", a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert got == rounded(exact, float(exact), np.float32, mode), (x, y, z)


def test_fma_of_float64_is_exact():
    a, b = RNG.standard_normal((2, 300))
    got = compute("fma.rn.f64", a, b, -a * b)
    for x, y, lost in zip(a, b, got, strict=True):
        assert Fraction(float(lost)) == Fraction(x) * Fraction(y) - Fraction(x * y)


@pytest.mark.parametrize(("opcode", "dtype"), [
    ("cvt.rn.f16x2.f32", np.float16), ("cvt.rn.bf16x2.f32", ml_dtypes.bfloat16),
])  # fmt: skip
def test_pairs_are_rounded_and_packed(opcode, dtype):
    ties = np.arange(0, 2**32, 2**12 + 7, dtype=np.uint32) // 2**11 * 2**11
    random = RNG.integers(0, 2**32, 2**15, dtype=np.uint32)
    high = np.concatenate([np.float32(SPECIAL), random.view("f4"), ties[: 2**18].view("f4")])
    low = RNG.permutation(high)
    packed = compute(opcode, high, low)
    with np.errstate(all="ignore"):
        for half, source in ((packed >> 16, high), (packed & 0xFFFF, low)):
            expected = source.astype(dtype).view(np.uint16)
            found = half.astype(np.uint16)
            numbers = ~np.isnan(source)
            np.testing.assert_array_equal(found[numbers], expected[numbers])
            np.testing.assert_array_equal(found[~numbers], 0x7FFF)


def test_conversions_to_integers():
    x = [2.5, 3.5, -2.5, 1e30, -1e30, np.nan, np.inf, -0.4]
    most, least = 2**63 - 1, -(2**63)
    assert compute("cvt.rni.f32.f32", x[:3]).tolist() == [2, 4, -2]
    assert compute("cvt.rzi.s64.f32", x).tolist() == [2, 3, -2, most, least, least, most, 0]
    assert compute("cvt.rni.s32.f32", x[3:6]).tolist() == [2**31 - 1, -(2**31), 0]
    assert compute("cvt.rmi.u32.f64", [-0.5, 2.0**32, 7.9]).tolist() == [0, 2**32 - 1, 7]
    assert compute("cvt.sat.f32.f32", [-1, 0.5, 7, np.nan]).tolist() == [0, 0.5, 1, 0]
    assert compute("cvt.s64.s32", [-1]).tolist() == [-1]
    assert compute("cvt.u64.u32", [2**32 - 1]).tolist() == [2**32 - 1]
    assert compute("cvt.u32.u64", [2**32 + 5]).tolist() == [5]
    assert compute("cvt.rn.f32.s64", [2**24 + 1, 2**24 + 3, -1]).tolist() == [2**24, 2**24 + 4, -1]


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_with_nan(name):
    a, b = np.float32([1, 2, np.nan, 1]), np.float32([1, 1, 1, np.nan])
    ordered = [bool(getattr(x, f"__{name}__")(y)) for x, y in zip(a[:2], b[:2], strict=True)]
    for suffix, with_nan in (("", False), ("u", True)):
        found, opposite = compute(f"setp.{name}{suffix}.f32", a, b)
        assert found.tolist() == [*ordered, with_nan, with_nan]
        assert opposite.tolist() == (~found).tolist()
    assert compute("setp.nan.f32", a, b)[0].tolist() == [False, False, True, True]


def test_extremes_of_floats():
    a, b = [np.nan, 1, -0.0, 0.0, np.nan], [2, np.nan, 0.0, -0.0, np.nan]
    assert compute("max.f32", a, b).tolist()[:2] == [2, 1]
    assert np.signbit(compute("max.f32", a, b)[2:4]).tolist() == [False, False]
    assert np.signbit(compute("min.f32", a, b)[2:4]).tolist() == [True, True]
    assert np.isnan(compute("max.NaN.f32", a, b)[[0, 1, 4]]).all()
    assert compute("mul.ftz.f32", [1e-39, -1e-20], [1, 1e-20]).tolist() == [0, 0]
    assert compute("mul.f32", [1e-39], [1])[0] > 0
    assert compute("copysign.f32", [-1.0], [3.0]).tolist() == [-3]
    assert compute("ex2.approx.ftz.f32", [-127.5, -np.inf, 2, np.inf]).tolist() == [0, 0, 4, np.inf]
    # Its result has 20 bits of mantissa, and Newton's steps refine it.
    (crude,) = compute("rcp.approx.ftz.f64", [3.0])
    assert crude.view(np.uint64) % 2**32 == 0
    assert math.isclose(crude, 1 / 3, rel_tol=2**-20)


def test_integers_are_those_of_python():
    edges = [0, 1, -1, 7, -7, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**32, 3**39]
    pairs = [(x, y) for x in edges for y in edges]
    for bits, letter in ((32, "s"), (64, "s"), (32, "u"), (64, "u")):
        low = -(2 ** (bits - 1)) if letter == "s" else 0
        here = [((x - low) % 2**bits + low, (y - low) % 2**bits + low) for x, y in pairs]
        kind, dtype = f"{letter}{bits}", np.dtype(f"{'i' if letter == 's' else 'u'}{bits // 8}")
        a, b = np.array(here, object).T.astype(dtype)

        def wrapped(number, low=low, bits=bits):
            return (number - low) % 2**bits + low

        def check(opcode, function, a=a, b=b, here=here):
            got = compute(opcode, a, b).tolist()
            assert got == [function(x, y) for x, y in here], opcode

        check(f"mul.lo.{kind}", lambda x, y: wrapped(x * y))
        check(f"mul.hi.{kind}", lambda x, y, bits=bits: x * y >> bits)
        check(f"sub.{kind}", lambda x, y: wrapped(x - y))
        check(f"max.{kind}", max)
        if bits == 32:
            check(f"mul.wide.{kind}", lambda x, y: x * y)

        def divided(x, y):
            quotient = abs(x) // abs(y)
            return -quotient if (x < 0) != (y < 0) else quotient

        most = -low if letter == "s" else None
        proper = [(x, y) for x, y in here if y and (x, y) != (most and -most, -1)]
        a, b = np.array(proper, object).T.astype(dtype)
        check(f"div.{kind}", divided, a, b, proper)
        check(f"rem.{kind}", lambda x, y: x - y * divided(x, y), a, b, proper)


def test_bits():
    word = [0x80000001, 0x12345678, 0]
    assert compute("popc.b32", word).tolist() == [2, 13, 0]
    assert compute("clz.b32", word).tolist() == [0, 3, 32]
    assert compute("brev.b32", word).tolist() == [0x80000001, 0x1E6A2C48, 0]
    assert compute("shl.b32", [1, 1], [31, 32]).tolist() == [2**31, 0]
    assert compute("shr.s32", [-8, -8], [1, 40]).tolist() == [-4, -1]
    assert compute("shr.u64", [2**63], [64]).tolist() == [0]
    assert compute("shf.l.wrap.b32", [0x80000000], [1], [33]).tolist() == [3]
    assert compute("shf.r.clamp.b32", [0], [5], [32]).tolist() == [5]
    assert compute("bfe.u32", [0x12345678], [8], [8]).tolist() == [0x56]
    assert compute("bfe.s32", [0x00008000], [8], [8]).tolist() == [-128]
    assert compute("bfi.b32", [0xAB], [0x12345678], [8], [8]).tolist() == [0x1234AB78]
    assert compute("prmt.b32", [0x33221100], [0x77665580], [0x5410]).tolist() == [0x55801100]
    assert compute("prmt.b32", [0], [0x80], [0x4C44]).tolist() == [0x80FF8080]
    assert compute("lop3.b32", [0b1100], [0b1010], [0], [0x3C]).tolist() == [0b0110]


# ------------------------------------------------------------------------------- threads


def test_threads_part_and_meet_again():
    """Each thread counts down from its number; odd ones add 100."""
    found = np.zeros(8, np.uint32)
    body = """
        mov.u32 %r2, 0; mov.u32 %r3, %r1;
    $loop:
        setp.eq.u32 %p1, %r3, 0;
        @%p1 bra $done;
        add.u32 %r2, %r2, %r3; sub.u32 %r3, %r3, 1;
        bra.uni $loop;
    $done:
        and.b32 %r4, %r1, 1; setp.ne.s32 %p2, %r4, 0;
        @%p2 add.s32 %r2, %r2, 100;
        st.global.u32 [%rd10], %r2;
    """
    run(body, found)
    assert found.tolist() == [0, 101, 3, 106, 10, 115, 21, 128]


REVERSE = """
    cvt.u64.u32 %rd20, %r1; shl.b64 %rd20, %rd20, 2;
    mov.u64 %rd21, memory; add.s64 %rd22, %rd21, %rd20;
    ld.global.f32 %f1, [%rd10]; st.shared.f32 [%rd22], %f1;
    {barrier}
    sub.s64 %rd23, %rd21, %rd20; ld.shared.f32 %f2, [%rd23+252];
    st.global.f32 [%rd11], %f2;
"""
SHARED = ".shared .align 4 .b8 memory[256];"


@pytest.mark.parametrize("order", ["forward", "reversed", 7])
def test_barriers(order):
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    body = REVERSE.format(barrier="bar.sync 0;")
    run(body, x, y, threads=64, declarations=SHARED, order=order)
    np.testing.assert_array_equal(y, x[::-1])


@pytest.mark.parametrize("order", ["forward", "reversed", 7])
def test_a_missing_barrier_is_seen(order):
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    with pytest.raises(ptx.Fault, match="a race: no barrier after another thread's"):
        run(REVERSE.format(barrier=""), x, y, threads=64, declarations=SHARED, order=order)


@pytest.mark.parametrize(("body", "race"), [
    ("st.shared.u32 [memory], %r1;", "store at the same time"),
    ("mov.u32 %r2, 7; st.shared.u32 [memory], %r2;", None),
    ("ld.shared.u32 %r2, [memory]; {barrier} {first} st.shared.u32 [memory], %r1;", "load"),
    ("{first} st.shared.u32 [memory], %r1; ld.shared.u32 %r2, [memory];", None),
    ("{first} st.shared.u32 [memory], %r1; $on: ld.shared.u32 %r2, [memory];", "store"),
    ("atom.shared.add.u32 %r2, [memory], 1; {barrier} ld.shared.u32 %r2, [memory];", "store"),
    ("{first} st.shared.u32 [memory], %r1; $on: {barrier} atom.shared.add.u32 %r2, [memory], 1;",
     "store"),
])  # fmt: skip
def test_races(body, race):
    """With the barrier there is none."""
    first = (
        "setp.ne.u32 %p1, %r1, 0; @%p1 bra $on;"
        if "$on" in body
        else ("setp.ne.u32 %p1, %r1, 0; @%p1 bra $end;")
    )
    for barrier in ("", "bar.sync 0;"):
        text = body.format(barrier=barrier, first=first) + "$end:"
        if race is None or (barrier and "{barrier}" in body):
            run(text, np.zeros(8, np.uint32), declarations=SHARED)
        else:
            with pytest.raises(ptx.Fault, match=f"another thread's {race}"):
                run(text, np.zeros(8, np.uint32), declarations=SHARED)


def test_blocks_share_atomics_but_no_memory():
    """Each block draws a ticket; wherever it runs, its shared memory is its own."""
    body = """
        mov.u32 %r2, %ctaid.x; setp.ne.u32 %p1, %r1, 0;
        @%p1 bra $wait;
        atom.global.inc.u32 %r3, [%rd0], 2;
        st.shared.u32 [memory], %r2;
    $wait:
        bar.sync 0;
        ld.shared.u32 %r4, [memory];
        mad.lo.s32 %r5, %r2, 8, %r1; mul.wide.u32 %rd20, %r5, 4; add.s64 %rd20, %rd1, %rd20;
        st.global.u32 [%rd20], %r4;
        atom.global.max.u32 %r6, [%rd2], %r5;
    """
    for order in ("forward", "reversed", 3):
        ticket, found, largest = np.zeros(1, np.uint32), np.zeros(56, np.uint32), np.zeros(1, "u4")
        run(body, ticket, found, largest, grid=7, declarations=SHARED, order=order)
        # Seven times around a counter of three.
        assert ticket[0] == 1
        assert found.reshape(7, 8).tolist() == [[k] * 8 for k in range(7)]
        assert largest[0] == 55


@pytest.mark.parametrize(("fence", "load", "message"), [
    ("membar.gl;", "ld.volatile.global.u32", None),
    ("fence.acq_rel.gpu;", "ld.relaxed.gpu.global.u32", None),
    ("", "ld.volatile.global.u32", "no fence after another block's store"),
    ("membar.cta;", "ld.volatile.global.u32", "no fence after another block's store"),
    ("membar.gl;", "ld.global.u32", "an ordinary load of another block's store"),
])  # fmt: skip
def test_blocks_pass_values_by_fences(fence, load, message):
    """The last block of two reads what the other has left."""
    body = f"""
        mov.u32 %r2, %ctaid.x; mul.wide.u32 %rd20, %r2, 4; add.s64 %rd20, %rd0, %rd20;
        st.global.u32 [%rd20], %r2; {fence}
        atom.global.inc.u32 %r3, [%rd1], 1; setp.eq.u32 %p1, %r3, 0;
        @%p1 bra $end;
        {load} %r4, [%rd0]; {load} %r5, [%rd0+4]; add.u32 %r4, %r4, %r5;
        st.global.u32 [%rd2], %r4;
    $end:
    """
    for order in ("forward", "reversed"):
        parts, ticket, total = np.zeros(2, np.uint32), np.zeros(1, np.uint32), np.zeros(1, "u4")
        options = {"threads": 1, "grid": 2, "order": order}
        if message is None:
            run(body, parts, ticket, total, **options)
            assert total[0] == 1
        else:
            with pytest.raises(ptx.Fault, match=message):
                run(body, parts, ticket, total, **options)


def test_shuffles():
    found = np.zeros(32, np.uint32)
    step = "shfl.sync.bfly.b32 %r3, %r2, {0}, 31, -1; add.u32 %r2, %r2, %r3;"
    total = "mov.b32 %r2, %r1;" + "".join(map(step.format, (16, 8, 4, 2, 1)))
    run(total + "st.global.u32 [%rd10], %r2;", found, threads=32)
    assert found.tolist() == [31 * 16] * 32
    for mode, expected in (
        ("up.b32 %r3|%p1, %r1, 1, 0", [0, *range(31)]),
        ("down.b32 %r3|%p1, %r1, 2, 31", [*range(2, 32), 30, 31]),
        ("idx.b32 %r3|%p1, %r1, 5, 31", [5] * 32),
        # Groups of eight lanes.
        ("down.b32 %r3|%p1, %r1, 1, 6175", [k + (k % 8 < 7) for k in range(32)]),
    ):
        run(f"shfl.sync.{mode}, -1; st.global.u32 [%rd10], %r3;", found, threads=32)
        assert found.tolist() == expected
    vote = "setp.lt.u32 %p1, %r1, 3; vote.sync.ballot.b32 %r2, %p1, -1; st.global.u32 [%rd10], %r2;"
    run(vote, found, threads=32)
    assert found.tolist() == [7] * 32


def test_parameters_tables_local_memory_and_packing():
    """A structure as a parameter; bytes of a table; a thread's own memory; halves of a register."""
    text = """
    .version 9.0
    .global .align 4 .b8 table[4] = {1, 2, 3, 250};
    .visible .entry kernel(.param .align 8 .b8 both[16], .param .u32 number)
    {
        .local .align 8 .b8 depot[16];
        .reg .b64 %rd<9>; .reg .b32 %r<19>; .reg .b16 %rs<9>; .reg .pred %p<2>;
        ld.param.u64 %rd1, [both+8];
        mov.b64 %rd2, both; ld.param.u32 %r1, [%rd2];
        ld.param.u32 %r2, [number];
        mov.u64 %rd3, table; ld.global.s8 %r3, [%rd3+3]; ld.global.u8 %rs7, [%rd3+3];
        mov.u32 %r4, %tid.x;
        mov.u64 %rd4, depot; cvta.local.u64 %rd5, %rd4; st.u32 [%rd5+4], %r4;
        ld.local.u32 %r5, [depot+4];
        mov.b32 {%rs1, %rs2}, 0x00070009; mov.b32 %r6, {%rs2, %rs1};
        { .reg .b16 %temp; mov.b32 {%temp, %rs3}, 0x00050000; }
        cvt.u32.u16 %r7, %rs3; cvt.u32.u16 %r8, %rs7;
        mul.wide.u32 %rd6, %r4, 32; add.s64 %rd7, %rd1, %rd6;
        st.global.v4.u32 [%rd7], {%r1, %r2, %r3, %r5};
        st.global.v2.u32 [%rd7+16], {%r6, %r7}; st.global.u32 [%rd7+24], %r8;
        ret;
    }
    """
    program, found = ptx.Program(text), np.zeros((3, 8), np.int32)
    both = struct.pack("iiQ", 11, 0, program.memory.add(found))
    program.launch(None, (1,), (3,), [both, struct.pack("i", 22)])
    swapped = 0x00090007
    assert found.tolist() == [[11, 22, -6, k, swapped, 5, 250, 0] for k in range(3)]


def test_calls():
    """A function called twice, whose labels and registers are its own; odd threads return early."""
    text = """
    .version 9.0
    .func (.param .b32 returned) twice(.param .b32 twice_0);
    .visible .entry kernel(.param .u64 out)
    {
        .reg .b64 %rd<9>; .reg .b32 %r<9>; .reg .pred %p<3>;
        ld.param.u64 %rd1, [out]; mov.u32 %r1, %tid.x;
        { .param .b32 param0; st.param.b32 [param0+0], %r1; .param .b32 retval0;
          call.uni (retval0), twice, (param0); ld.param.b32 %r2, [retval0+0]; }
        { .param .b32 param0; st.param.b32 [param0+0], %r2; .param .b32 retval0;
          call.uni (retval0), twice, (param0); ld.param.b32 %r2, [retval0+0]; }
        mul.wide.u32 %rd2, %r1, 4; add.s64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r2;
        ret;
    }
    .func (.param .b32 returned) twice(.param .b32 twice_0)
    {
        .reg .b32 %r<9>; .reg .pred %p<3>;
        ld.param.u32 %r1, [twice_0]; st.param.b32 [returned+0], %r1;
        and.b32 %r2, %r1, 1; setp.ne.u32 %p1, %r2, 0;
        @%p1 bra $odd;
        add.u32 %r1, %r1, %r1; st.param.b32 [returned+0], %r1;
    $odd:
        ret;
    }
    """
    program, found = ptx.Program(text), np.zeros(6, np.uint32)
    program.launch(None, (1,), (6,), [struct.pack("Q", program.memory.add(found))])
    assert found.tolist() == [0, 1, 8, 3, 16, 5]


# ----------------------------------------------------------------------- what must be found


@pytest.mark.parametrize(("body", "message"), [
    ("ld.global.f32 %f1, [%rd10+4];", r"thread \(7, 0, 0\).*0 bytes after array 0"),
    ("ld.global.f32 %f1, [%rd10+-4];", r"thread \(0, 0, 0\).*4 bytes before array 0 of 32"),
    ("st.global.f32 [%rd10+2], %f1;", r"line 15, block \(0, 0, 0\).*misaligned"),
    ("ld.global.v2.f32 {%f1, %f2}, [%rd10];", r"thread \(1, 0, 0\).*8 bytes at the misaligned"),
    ("st.shared.f32 [memory+256], %f1;", "outside of variables"),
    ("st.shared.f32 [memory+-4], %f1;", "outside of variables"),
    ("ld.f32 %f1, [%rd20+0];", "belongs to nothing registered"),
    ("frob.f32 %f1, %f2;", r"`frob.f32 %f1, %f2`: cannot run this: NotImplementedError"),
    ("add.rz.f32 %f1, %f2, %f3;", r"cannot run this: NotImplementedError: add.rz.f32"),
    ("add.f64 %f1, %f2, %f3;", "float64 in a register of 32 bits"),
    ("setp.lt.u32 %p1, %r1, 4; @%p1 bra $out; bar.sync 0; $out:", "4 of 8 threads never come"),
    ("setp.lt.u32 %p1, %r1, 4; @%p1 bar.sync 0;", "a barrier for part of the threads"),
    ("setp.lt.u32 %p1, %r1, 4; @%p1 bra $else; bar.sync 0; bra $out; $else: bar.sync 0; $out:",
     "wait elsewhere"),
    ("setp.lt.u32 %p1, %r1, 4; @%p1 bra $out; shfl.sync.bfly.b32 %r2, %r1, 1, 31, 255; $out:",
     "not all lanes of the mask"),
    ("$loop: bra $loop;", "more than 1000 steps"),
])  # fmt: skip
def test_faults(body, message, monkeypatch):
    monkeypatch.setattr(ptx, "MOST_STEPS", 1000)
    with pytest.raises(ptx.Fault, match=message):
        run(body, np.zeros(8, np.float32), declarations=SHARED)


def test_a_text_that_is_not_ptx():
    with pytest.raises(SyntaxError, match="line 2"):
        ptx.Program(".version 9.0\nvoid f() {}")
