"""Small arrays take a short way, whose results and errors are those of the long one."""

from __future__ import annotations

import itertools
import operator
import warnings

import numpy as np
import pytest

import nbbn
from nbbn import backend
from tests.helpers.views import big_endian, flipped, sliced

OPERATIONS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "maximum": nbbn.ops.maximum,
}  # fmt: skip
SHAPES = [(), (1,), (0,), (1, 2), (2, 1), (7,), (3, 7), (2, 1, 7), (5, 1, 1)]
LAYOUTS = [np.array, np.transpose, np.asfortranarray, big_endian]
NUMBERS = [
    2.0, -3, 0, 0.0, 10**39, 1e300, 10**400, float("nan"), float("inf"), True, 2j, "2", None,
    np.float32(2), np.float64(2), np.int64(2), np.arange(7), np.ones(7), [1.0],
]  # fmt: skip


def outcome(call, *operands):
    """What a call gives, however it ends, and what it warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            y = call(*operands).data
            found = type(y), y.dtype, y.shape, y.flags.carray, y.tobytes()
        except Exception as error:
            found = type(error), str(error)
    return found, [(warning.category, str(warning.message)) for warning in caught]


@pytest.fixture
def both(monkeypatch):
    """Return what asserts that the outcomes of the short way and of the long one agree."""

    def check(name, call, *operands):
        short = outcome(call, *operands)
        with monkeypatch.context() as patched:
            patched.setattr(backend, "recorded", lambda: True)
            assert short == outcome(call, *operands), (name, operands)

    return check


def values(shape, dtype):
    array = np.random.default_rng(3).normal(size=shape)
    if array.size > 6:
        array.flat[[0, 3, 5]] = np.nan, np.inf, -0.0
    return array.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_arrays(name, dtype, both):
    arrays = [layout(values(shape, dtype)) for shape in SHAPES for layout in LAYOUTS]
    arrays += [view(values((4, 7), dtype)) for view in (flipped, sliced)]
    for a, b in itertools.product(arrays, repeat=2):
        both(name, OPERATIONS[name], nbbn.Tensor(a), b)


@pytest.mark.parametrize("shape", [(), (7,), (3, 7), (50, 50)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_numbers(name, shape, both):
    x, call = nbbn.Tensor(values(shape, np.float32)), OPERATIONS[name]
    for value in NUMBERS:
        both(name, lambda a, b: call(a, b), x, value)
        if name != "maximum":
            both(name, lambda a, b: call(b, a), x, value)


@pytest.mark.parametrize("call", [
    nbbn.Tensor.exp, nbbn.Tensor.log, operator.neg, nbbn.ops.softplus, lambda x: x**2,
    lambda x: x**-0.5,
])  # fmt: skip
def test_functions_of_one_array(call, both):
    for shape, layout, dtype in itertools.product(SHAPES, LAYOUTS, (np.float32, np.float64)):
        both(call, call, nbbn.Tensor(layout(values(shape, dtype))))


@pytest.mark.parametrize("dtype", [np.int64, np.float16, np.longdouble, complex, bool])
@pytest.mark.parametrize("op", [nbbn.ops.Add, nbbn.ops.Divide])
def test_arrays_that_no_tensor_holds(op, dtype, both):
    for first, second in itertools.product(SHAPES, repeat=2):
        both(op, lambda a, b: nbbn.apply(op, a, b), np.ones(first, dtype), np.ones(second, dtype))


@pytest.fixture
def only_short(monkeypatch):
    def fail(*args):
        raise AssertionError("the long way")

    monkeypatch.setattr(backend, "run", fail)


def test_the_short_way_is_taken(only_short):
    x, wide = nbbn.Parameter(np.ones((1, 2), np.float32)), np.ones((3, 1), np.float32)
    results = x + x, x * 2.0, 1 - x, x + wide, x.exp(), nbbn.ops.maximum(x, 0)
    assert [y.shape[1] for y in results] == [2] * 6


@pytest.mark.parametrize("shapes", [((), (2048,)), ((2048, 1), (1, 2048)), ((2048,), (2048,))])
def test_what_may_be_large_comes_from_the_backend(shapes, only_short):
    for a, b in itertools.permutations(nbbn.Tensor(np.ones(shape)) for shape in shapes):
        with pytest.raises(AssertionError, match="the long way"):
            a * b
