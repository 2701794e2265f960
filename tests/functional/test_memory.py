"""Every function of `helpers/functions`: layouts, given results, types, threads, refusals."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.helpers import views
from tests.helpers.functions import FUNCTIONS, arrays, first, upstream

every_function = pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.name)
# Views that order the axes in memory in another way.
REORDERED = (views.rotated, views.swapped_tail, np.asfortranarray)


def laid_out(view, array):
    """The view of an array; of few axes, which cannot all change places, every second element."""
    return view(array) if array.ndim > 2 or view not in REORDERED[:2] else views.sliced(array)


def assert_same(found, expected, exact=True):
    for got, want in zip(found, expected, strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        if exact:
            np.testing.assert_array_equal(got, want)
        else:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_every_function_is_in_the_table():
    names = {f.name.replace(",", "").split(" ")[0] for f in FUNCTIONS}
    missing = {n for n in F.__all__ if n[0].islower() and not n.endswith("_backward")} - names
    others = {"batch_norm_train", "batch_norm_infer", "weighted_batch_norm_train", "merge_stats"}
    assert missing == {*others, "update_running_stats"}


@pytest.mark.parametrize("view", [*views.VIEWS, views.read_only, views.big_endian])
@every_function
def test_layouts_change_nothing(f, view, rng):
    operands = f.operands(rng)
    expected = f.everything(*operands)
    dy = upstream(f.forward(*operands))
    dy = laid_out(view, dy) if dy.ndim else dy
    found = f.everything(*(laid_out(view, a) for a in operands), dy=dy)
    if view is views.big_endian:
        found = [a.astype(a.dtype.newbyteorder("=")) for a in found]
    assert_same(found, expected, exact=not (f.in_memory_order and view in REORDERED))


@pytest.mark.parametrize("view", [views.sliced, np.asfortranarray, views.misaligned, np.array])
@every_function
def test_results_go_where_they_are_told(f, view, rng):
    operands = f.operands(rng)
    found = f.forward(*operands)
    y, dy = first(found), upstream(found)
    if f.gives_y:
        out = view(np.zeros_like(y)) if y.ndim else np.zeros(2, y.dtype)[..., 0]
        assert first(f.forward(*operands, out=out)) is out
        np.testing.assert_array_equal(out, y)
    gradients = arrays(f.backward(dy, found, *operands))
    outs = [view(np.zeros_like(gradient)) for gradient in gradients[: len(f.outs)]]
    got = arrays(f.backward(dy, found, *operands, **dict(zip(f.outs, outs, strict=True))))
    for array, out in zip(got, outs, strict=False):
        assert array is out
    assert_same(got, gradients)


def across(array):
    """The array, and a place for a result one element further on in the same memory."""
    memory = np.append(array.ravel(), array.dtype.type(0))
    return memory[:-1].reshape(array.shape), memory[1:].reshape(array.shape)


# Parameters of float32 are converted, which is a copy; those of float64 are read where they are.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_function
def test_a_result_may_go_over_any_operand(f, dtype, rng):
    operands = f.operands(rng, dtype)
    found = f.forward(*operands)
    y, dy = first(found), upstream(found)
    for place, operand in enumerate(operands):
        if f.gives_y and operand.shape == y.shape and operand.dtype == y.dtype:
            own = [a.copy() for a in operands]
            assert first(f.forward(*own, out=own[place])) is own[place]
            np.testing.assert_array_equal(own[place], y)
            own[place], out = across(operand)
            np.testing.assert_array_equal(first(f.forward(*own, out=out)), y)
    gradients = arrays(f.backward(dy, found, *operands))
    for number, (name, gradient) in enumerate(zip(f.outs, gradients, strict=False)):
        for place, operand in enumerate([dy, *operands]):
            if operand.shape == gradient.shape and operand.dtype == gradient.dtype:
                own = [a.copy() for a in (dy, *operands)]
                got = arrays(f.backward(own[0], found, *own[1:], **{name: own[place]}))
                assert got[number] is own[place]
                assert_same(got, gradients)
                own = [dy, *operands]
                own[place], out = across(own[place])
                got = arrays(f.backward(own[0], found, *own[1:], **{name: out}))
                assert_same(got, gradients)


@every_function
def test_half_precision_computes_in_float32(f, rng):
    """And rounds once: y is float16, and so is dx; statistics and gradients of others are not."""
    narrow = f.operands(rng, np.float16)
    found, want = f.forward(*narrow), f.forward(*(a.astype(np.float32) for a in narrow))
    for got, expected in zip(arrays(found), arrays(want), strict=True):
        np.testing.assert_array_equal(got, expected.astype(got.dtype))
    y = first(found)
    gradients = arrays(f.backward(upstream(found), found, *narrow))
    # The states of a recurrent network stay in the type that they are computed in.
    half = np.float32 if "recurrent" in f.name else np.float16
    assert [a.dtype for a in (y, *gradients)] == [half, half, *[np.float32] * (len(gradients) - 1)]


@every_function
def test_batches_may_be_empty(f, rng):
    operands = f.operands(rng)
    shape = operands[0].shape
    for axis in f.empty:
        without = [np.delete(a, np.s_[:], axis) if a.shape == shape else a for a in operands]
        if "weights" in f.shapes:
            without[1] = without[1][:0]
        found = f.forward(*without)
        assert first(found).size == 0
        dx, *gradients = arrays(f.backward(first(found), found, *without))
        assert dx.shape == without[0].shape
        assert not any(gradient.any() for gradient in gradients)


# ------------------------------------------------------------------------------- refusals

KINDS = {
    "masked": lambda a: np.ma.array(a),
    "matrix": lambda a: a.reshape(len(a), -1).view(np.matrix),
    "int64": lambda a: a.astype(np.int64),
    "uint8": lambda a: a.astype(np.uint8),
    "bool": lambda a: a > 0,
    "complex64": lambda a: a.astype(np.complex64),
    "float128|longdouble": lambda a: a.astype(np.longdouble),
    "object": lambda a: a.astype(object),
    "<U": lambda a: a.astype(str),
    "list": lambda a: a.tolist(),
    "None": lambda a: None,
}
# What may be left out, and weights, which may be whole numbers.
OPTIONAL = ("gamma", "beta", "bias", "residual", "initial")


def places(f, operands):
    """The place of each operand of float numbers, dy last, and a call with another one there."""
    found = f.forward(*operands)
    dy = upstream(found)

    def forward(place, value):
        f.forward(*operands[:place], value, *operands[place + 1 :])

    for place, name in enumerate(f.shapes):
        yield name, operands[place], lambda value, place=place: forward(place, value)
    yield "dy", dy, lambda value: f.backward(value, found, *operands)


@pytest.mark.parametrize("kind", KINDS)
@every_function
def test_what_is_no_array_of_floats_is_refused(f, kind, rng):
    for name, operand, call in places(f, f.operands(rng)):
        scalar = name == "dy" and "cross_entropy" in f.name
        if scalar or name == "weights" or (kind == "None" and name in OPTIONAL):
            continue
        with pytest.raises(DTypeError, match=kind):
            call(KINDS[kind](operand))


@every_function
def test_shapes_that_do_not_fit_are_refused(f, rng):
    for name, operand, call in places(f, f.operands(rng)):
        if name in ("x", "projected") or (name == "dy" and "cross_entropy" in f.name):
            continue
        wrong = (operand[:-1], operand[..., None], operand[None], operand[:1], operand[:0],
                 operand.reshape(-1)[0, ...])  # fmt: skip
        # Weights may have any shape that broadcasts.
        for value in wrong[:1] if name == "weights" else wrong:
            if value.shape != operand.shape:
                # Filters are counted: those of a weight that fits the images have other biases.
                named = str(value.shape), str(value.shape[:1])
                with pytest.raises(ShapeError, match="|".join(map(re.escape, named))):
                    call(value)


@every_function
def test_results_that_do_not_fit_are_refused(f, rng):
    operands = f.operands(rng)
    found = f.forward(*operands)
    calls = [("out", first(found), lambda out: f.forward(*operands, out=out))] * f.gives_y
    gradients = arrays(f.backward(upstream(found), found, *operands))
    for name, gradient in zip(f.outs, gradients, strict=False):
        calls.append((name, gradient, lambda out, name=name: f.backward(
            upstream(found), found, *operands, **{name: out})))  # fmt: skip
    for name, result, call in calls:
        for out, error, words in (
            (result[None], ShapeError, f"{name}.*{re.escape(str((1, *result.shape)))}"),
            (result.astype(np.float64), DTypeError, f"{name}.*float32.*float64"),
            (result.astype(np.int64), DTypeError, f"{name}.*int64"),
            (result.tolist(), DTypeError, name),
            (np.ma.array(result), DTypeError, "masked"),
            (views.read_only(result), ArgumentError, "read-only"),
        ):
            with pytest.raises(error, match=words):
                call(out)


# -------------------------------------------------------------------------------- threads

# The bits of the serial form, against those of the parallel form, forced and as it is chosen.
DIGESTS = """
import hashlib
import sys
import numba
import numpy as np
from nbbn.kernels import _jit
from tests.helpers.functions import FUNCTIONS, LARGE

def digests():
    rng = np.random.default_rng(0)
    for f in (*FUNCTIONS, *LARGE):
        for number, array in enumerate(f.everything(*f.operands(rng, sys.argv[1]))):
            digest = hashlib.sha256(np.ascontiguousarray(array)).hexdigest()
            yield f"{f.name} result {number}", digest

normal = _jit.PARALLEL_MIN
_jit.PARALLEL_MIN = 10**12
expected = dict(digests())
for threads in (1, 2, 3, 4, 8):
    numba.set_num_threads(threads)
    for _jit.PARALLEL_MIN in (0, normal):
        for name, digest in digests():
            if digest != expected[name]:
                print(name, "differs from the serial form, threads:", threads, _jit.PARALLEL_MIN)
_jit.PARALLEL_MIN = 0
print("workers", _jit.workers(10**6))
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_same_bits_for_any_number_of_threads(dtype):
    result = subprocess.run(
        [sys.executable, "-c", DIGESTS, dtype], env={**os.environ, "NUMBA_NUM_THREADS": "8"},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    *different, workers = result.stdout.splitlines()
    assert not different, "\n".join(different)
    if workers == "workers 1":
        pytest.skip("this threading layer cannot be shared, so that only the serial form runs")
    assert workers == "workers 8"
