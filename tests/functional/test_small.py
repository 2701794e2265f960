"""Small arrays take a short way, whose results and errors are those of the long one."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import nbbn.functional as F  # noqa: N812 - the usual name
from nbbn.functional import batchnorm
from tests.helpers.views import misaligned, read_only


def strided(array):
    return np.repeat(array, 2, axis=-1)[..., ::2]


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


CALLS = {
    "infer": ("mean", "var", "gamma", "beta"),
    "train": ("gamma", "beta"),
    "backward": ("dy", "gamma", "stats"),
}


def outcome(call, out=None, **arguments):
    """What a call gives, however it ends, and what `out` holds then."""
    first = (arguments.pop("dy"),) if call == "backward" else ()
    try:
        found = getattr(F, f"batch_norm_{call}")(*first, arguments.pop("x"), out=out, **arguments)
    except Exception as error:
        return type(error), str(error)
    found = found if isinstance(found, tuple) else (found,)
    assert out is None or found[0] is out
    results = [r for item in found for r in (item if isinstance(item, tuple) else (item,))]
    return [
        (type(r), r.dtype, r.shape, r.strides, r.tobytes()) if isinstance(r, np.ndarray) else r
        for r in results
    ]


def both(monkeypatch, call, make):
    """Return the outcomes of the short way and of the long one."""
    short = outcome(call, **make())
    with monkeypatch.context() as patched:
        patched.setattr(batchnorm, "_small", lambda *args: None)
        return short, outcome(call, **make())


def operands(call, shape, dtype):
    rng = np.random.default_rng(5)
    mean, gamma, beta = rng.normal(size=(3, shape[-1])).astype(dtype)
    var = rng.uniform(0.5, 2.0, shape[-1]).astype(dtype)
    x = rng.normal(1.0, 2.0, shape).astype(dtype)
    wide = np.float64
    stats = F.BatchNormStats(
        x.mean(tuple(range(x.ndim - 1)), wide), var.astype(wide), rng.uniform(1, 2, shape[-1]),
        x.size // shape[-1],
    )  # fmt: skip
    found = {"mean": mean, "var": var, "gamma": gamma, "beta": beta, "stats": stats}
    found["dy"] = rng.normal(size=shape).astype(dtype)
    return {name: found[name] for name in CALLS[call]} | {"x": x, "out": np.zeros_like(x)}


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 64), (7, 5), (0, 3), (4, 1), (2, 3, 4), (300, 200)])
@pytest.mark.parametrize("call", CALLS)
def test_layouts_types_and_bad_operands(call, shape, dtype, monkeypatch):
    def make(name=None, change=None):
        found = operands(call, shape, dtype)
        if call == "backward" and name in F.BatchNormStats._fields:
            found["stats"] = found["stats"]._replace(
                **{name: change(getattr(found["stats"], name))}
            )
        elif name is not None:
            found[name] = change(found[name])
        return found

    names = [name for name in operands(call, shape, dtype) if name != "stats"]
    for name in (*names, *(("mean", "inv_std") if call == "backward" else ())):
        for change in CHANGES:
            short, long = both(monkeypatch, call, functools.partial(make, name, change))
            assert short == long, (name, change)


@pytest.mark.parametrize("count", [5, 7, True, 6.0, np.int64(6), "6", None])
def test_counts(count, monkeypatch):
    def make():
        found = operands("backward", (6, 5), np.float32)
        return found | {"stats": found["stats"]._replace(count=count)}

    short, long = both(monkeypatch, "backward", make)
    assert short == long


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_options(call, options, monkeypatch):
    known = (
        {"axis", "gamma"} if call == "backward" else {"axis", "gamma", "beta", "eps", "activation"}
    )
    if options.keys() <= known:
        short, long = both(monkeypatch, call, lambda: operands(call, (6, 5), np.float32) | options)
        assert short == long


@pytest.mark.parametrize("shift", [-5, -1, 0, 1, 20, 30, 31])
@pytest.mark.parametrize(("call", "name"), [*((c, "x") for c in CALLS), ("backward", "dy")])
def test_outputs_that_overlap(call, name, shift, monkeypatch):
    def make():
        found = operands(call, (6, 5), np.float32)
        memory = np.zeros(110, np.float32)
        memory[40:70] = found[name].ravel()
        found[name] = memory[40:70].reshape(6, 5)
        found["out"] = memory[40 + shift : 70 + shift].reshape(6, 5)
        return found

    short, long = both(monkeypatch, call, make)
    assert short == long


def test_an_output_over_the_mean():
    out_is_mean = operands("infer", (1, 5), np.float32)
    expected = outcome("infer", **out_is_mean)
    out_is_mean["out"] = out_is_mean["mean"].reshape(1, 5)
    assert outcome("infer", **out_is_mean) == expected


@pytest.mark.parametrize("call", CALLS)
def test_the_short_way_is_taken(call, monkeypatch):
    def fail(*args):
        raise AssertionError("the long way")

    monkeypatch.setattr(batchnorm, "channel_layout", fail)
    found = outcome(call, **operands(call, (3, 4), np.float32))
    assert found[0][0] is np.ndarray
