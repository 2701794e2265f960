"""The activations whose gradients need the input: GELU, SiLU, leaky ReLU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import nbbn
from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.errors import ArgumentError, DTypeError
from tests.helpers import reference
from tests.helpers.refusals import refusing

# The smooth ones: forward, backward, truth of the forward.
SMOOTH = {
    "gelu": (F.gelu, F.gelu_backward, reference.gelu),
    "gelu_tanh": (
        partial(F.gelu, approximate="tanh"),
        partial(F.gelu_backward, approximate="tanh"),
        reference.gelu_tanh,
    ),
    "silu": (F.silu, F.silu_backward, reference.silu),
}
every_smooth = pytest.mark.parametrize("name", SMOOTH)
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.fixture
def values():
    """Near zero, in the middle, in both tails: as far as float32 reaches."""
    sizes = np.concatenate([np.geomspace(1e-30, 1e3, 20_001), np.linspace(0, 12, 50_003)])
    return np.concatenate([sizes, -sizes])


@every_dtype
@every_smooth
def test_accuracy(values, name, dtype):
    """Four units in the last place.

    The argument of the exponential loses digits as it grows: of the approximation's, in both types,
    and of the normal distribution's in float64.
    """
    forward, _, truth = SMOOTH[name]
    x = values.astype(dtype)
    got, want = forward(x), truth(x)
    assert got.dtype == dtype
    digits = np.full(x.shape, 4.0)
    if name == "gelu_tanh" or (name == "gelu" and dtype == np.float64):
        # The approximation's is 1.6 x + 0.07 x^3, in which each term was rounded.
        grown = np.minimum(np.abs(x.astype(np.float64)), 15)
        digits = digits + 2 * (1.6 * grown + 0.07 * grown**3 + grown**2)
    bound = digits * np.finfo(dtype).eps * np.abs(want) + np.finfo(dtype).tiny
    if name == "gelu_tanh":
        # 1 + tanh has lost the tail's digits in the truth, which float64 holds to 1e-19.
        bound = bound + 1e-17
    assert np.all(np.abs(got - want) <= bound)


@every_dtype
@every_smooth
def test_derivatives_match_differences_of_the_truth(name, dtype):
    _, backward, truth = SMOOTH[name]
    x = np.linspace(-12, 12, 4001)
    step = 1e-4
    # Of fourth order, in extended precision.
    wide = reference.wide(x)
    want = (
        8 * (truth(wide + step) - truth(wide - step))
        - (truth(wide + 2 * step) - truth(wide - 2 * step))
    ) / (12 * step)
    got = backward(np.ones_like(x, dtype), x.astype(dtype))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 if dtype == np.float32 else 1e-10)


@every_dtype
@every_smooth
def test_extremes(name, dtype):
    forward, backward, _ = SMOOTH[name]
    x = np.array([-np.inf, -1e30, -0.0, 0.0, 1e30, np.inf, np.nan], dtype)
    with np.errstate(all="raise"):
        y, dx = forward(x), backward(np.ones_like(x), x)
    np.testing.assert_array_equal(y, [0, 0, 0, 0, dtype(1e30), np.inf, np.nan])
    np.testing.assert_array_equal(np.signbit(y[:4]), [True, True, True, False])
    np.testing.assert_array_equal(dx, [0, 0, 0.5, 0.5, 1, 1, np.nan])


def of_output(name):
    """Forward, and backward of the input."""
    forward, backward = getattr(F, name), getattr(F, f"{name}_backward")
    return forward, lambda dy, x: backward(dy, forward(x))


@every_dtype
@pytest.mark.parametrize("name", [*SMOOTH, "relu", "sigmoid", "tanh"])
def test_same_bits_wherever_a_value_stands(rng, name, dtype):
    """The vector path and the tail must agree, or results would depend on an array's length."""
    forward, backward = SMOOTH[name][:2] if name in SMOOTH else of_output(name)
    x, dy = rng.normal(size=(2, 40)).astype(dtype) * 4
    y, dx = forward(x), backward(dy, x)
    for start in range(0, 40, 3):
        np.testing.assert_array_equal(forward(x[start:].copy()), y[start:])
        np.testing.assert_array_equal(backward(dy[start:].copy(), x[start:].copy()), dx[start:])


@every_dtype
def test_leaky_relu(rng, dtype):
    x, dy = rng.normal(size=(2, 5, 37)).astype(dtype)
    x[0, :4] = 0, np.nan, np.inf, -np.inf
    for slope in (0, 0.2, 1, 3):
        y = F.leaky_relu(x, slope=slope)
        with np.errstate(invalid="ignore"):
            np.testing.assert_array_equal(y, np.where(x > 0, x, dtype(slope) * x))
            expected = np.where(x > 0, dy, dtype(slope) * dy)
        np.testing.assert_array_equal(F.leaky_relu_backward(dy, x, slope=slope), expected)


LAYERS = [
    (nbbn.GELU(), "GELU()"), (nbbn.GELU("tanh"), "GELU('tanh')"), (nbbn.SiLU(), "SiLU()"),
    (nbbn.LeakyReLU(), "LeakyReLU(0.01)"), (nbbn.LeakyReLU(0.2), "LeakyReLU(0.2)"),
]  # fmt: skip


@pytest.mark.parametrize(("layer", "text"), LAYERS, ids=lambda value: str(value))
def test_layers_are_those_of_torch(rng, layer, text):
    torch = pytest.importorskip("torch")
    names = {"slope": "negative_slope"}
    theirs = getattr(torch.nn, type(layer).__name__)
    options = {names.get(k, k): v for k, v in vars(layer).items() if k in ("approximate", "slope")}
    x = rng.normal(size=(4, 5))
    np.testing.assert_allclose(layer(x).data, theirs(**options)(torch.tensor(x)), 1e-12, 1e-15)
    assert repr(layer) == text


@pytest.mark.parametrize("activation", ["gelu", "silu", "leaky_relu"])
def test_an_mlp_has_them(activation):
    model = nbbn.mlp((3, 4, 2), activation=activation, rng=0)
    assert type(model[2]).__name__.lower() == activation.replace("_", "")


X = np.ones((2, 3), np.float32)
test_what_is_refused = refusing(
    [
        ("F.gelu(X, approximate='erf')", ArgumentError, "'none', 'tanh'; got 'erf'"),
        ("F.gelu_backward(X, X, approximate=True)", ArgumentError, "'none', 'tanh'; got True"),
        ("F.leaky_relu(X, slope=-0.1)", ArgumentError, "slope must be at least 0, got -0.1"),
        ("F.leaky_relu(X, slope='a')", DTypeError, "slope must be a number, got str"),
        ("F.leaky_relu_backward(X, X, slope=float('nan'))", ArgumentError, "finite, got nan"),
        ("nbbn.GELU('erf')", ArgumentError, "approximate"),
        ("nbbn.LeakyReLU(-1)", ArgumentError, "slope"),
    ],
    {"F": F, "X": X, "nbbn": nbbn},
)
