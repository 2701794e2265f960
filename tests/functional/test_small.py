"""Small arrays take a short way, whose results and errors are those of the long one."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import nbbn.functional as F  # noqa: N812 - the usual name
from nbbn.functional import batchnorm


def strided(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def misaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)
    copy = memory[1:].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def swapped(array):
    return array.astype(array.dtype.newbyteorder())


CHANGES = [
    np.copy, strided, read_only, misaligned, swapped, np.asfortranarray, np.ndarray.tolist,
    np.ma.masked_array, lambda a: a.view(np.memmap), lambda a: a.astype(np.float16),
    lambda a: a.astype(np.float64), lambda a: a.astype(np.float32), lambda a: a.astype(int),
    lambda a: a[:0], lambda a: a[..., :1], lambda a: a[..., None], lambda a: a[None],
    lambda a: a[::-1], lambda a: None, lambda a: 1.0,
]  # fmt: skip
OPTIONS = [
    {}, {"eps": 0.0}, {"eps": 1}, {"eps": -1.0}, {"eps": float("nan")}, {"eps": float("inf")},
    {"eps": "1"}, {"axis": 0}, {"axis": -1}, {"axis": True}, {"axis": 1.0}, {"axis": 2},
    {"axis": np.ones(2)}, {"axis": np.int64(1)}, {"activation": "relu"}, {"activation": "no"},
    {"gamma": None}, {"beta": None}, {"gamma": None, "beta": None},
]  # fmt: skip


def outcome(**arguments):
    """What a call gives, however it ends, and what `out` holds then."""
    try:
        y = F.batch_norm_infer(arguments.pop("x"), **arguments)
    except Exception as error:
        return type(error), str(error)
    out = arguments["out"]
    assert out is None or y is out
    return type(y), y.dtype, y.shape, y.strides, y.tobytes()


def both(monkeypatch, make):
    """Return the outcomes of the short way and of the long one."""
    short = outcome(**make())
    with monkeypatch.context() as patched:
        patched.setattr(batchnorm, "_small", lambda *args: None)
        return short, outcome(**make())


def operands(shape, dtype):
    rng = np.random.default_rng(5)
    mean, gamma, beta = rng.normal(size=(3, shape[-1])).astype(dtype)
    var = rng.uniform(0.5, 2.0, shape[-1]).astype(dtype)
    x = rng.normal(1.0, 2.0, shape).astype(dtype)
    return {"x": x, "mean": mean, "var": var, "gamma": gamma, "beta": beta, "out": np.zeros_like(x)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 64), (7, 5), (0, 3), (4, 1), (2, 3, 4), (300, 200)])
def test_layouts_types_and_bad_operands(shape, dtype, monkeypatch):
    def make(name=None, change=None):
        found = operands(shape, dtype)
        if name is not None:
            found[name] = change(found[name])
        return found

    for name in ("x", "mean", "var", "gamma", "beta", "out"):
        for change in CHANGES:
            short, long = both(monkeypatch, functools.partial(make, name, change))
            assert short == long, (name, change)


@pytest.mark.parametrize("options", OPTIONS)
def test_options(options, monkeypatch):
    short, long = both(monkeypatch, lambda: operands((6, 5), np.float32) | options)
    assert short == long


@pytest.mark.parametrize("shift", [-5, -1, 0, 1, 30, 31])
def test_outputs_that_overlap(shift, monkeypatch):
    def make():
        found = operands((6, 5), np.float32)
        memory = np.zeros(110, np.float32)
        memory[40:70] = found["x"].ravel()
        found["x"] = memory[40:70].reshape(6, 5)
        found["out"] = memory[40 + shift : 70 + shift].reshape(6, 5)
        return found

    short, long = both(monkeypatch, make)
    assert short == long
    out_is_mean = operands((1, 5), np.float32)
    expected = outcome(**out_is_mean)
    out_is_mean["out"] = out_is_mean["mean"].reshape(1, 5)
    assert outcome(**out_is_mean) == expected


def test_the_short_way_is_taken(monkeypatch):
    def fail(*args):
        raise AssertionError("the long way")

    monkeypatch.setattr(batchnorm, "channel_layout", fail)
    found = operands((3, 4), np.float32)
    y = F.batch_norm_infer(found.pop("x"), **found)
    assert y is found["out"]
