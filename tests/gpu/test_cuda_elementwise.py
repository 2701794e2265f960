"""All other kernels in either engine, against the reference and the CPU twins."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from nbbn.functional.checks import NO_LABEL
from nbbn.kernels import (
    dropout_cpu,
    dropout_cuda,
    elementwise_cpu,
    elementwise_cuda,
    gather_cpu,
    gather_cuda,
    optim_cpu,
    optim_cuda,
    softmax_cuda,
)
from tests.gpu.storage import (
    DTYPES,
    ROUNDING,
    error,
    poisoned,
    shifted,
    statistics_type,
    stored,
    values,
)
from tests.helpers import reference

SIZES = [1, 7, 8, 67]
OF_OUTPUT = ("relu", "sigmoid", "tanh")
both_arranged = pytest.mark.parametrize(
    "arrange", [np.copy, shifted], ids=["aligned", "misaligned"]
)
ROWS = [(1, 1), (3, 10), (20, 37), (5, 16)]


def random(shape, dtype, seed=0, scale=3.0):
    return stored(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


# ------------------------------------------------------------------------------ elementwise


@both_arranged
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*OF_OUTPUT, "gelu", "gelu_tanh", "silu", "leaky_relu"])
def test_activations(name, size, dtype, arrange):
    x, dy = arrange(random(size, dtype)), arrange(random(size, dtype, 1))
    y, dx = poisoned(size, dtype), poisoned(size, dtype)
    numbers = (0.25,) if name == "leaky_relu" else ()
    getattr(elementwise_cuda, name)(x, *numbers, y)
    assert error(values(y), getattr(reference, name)(values(x), *numbers)) < ROUNDING[dtype]
    operand = y if name in OF_OUTPUT else x
    getattr(elementwise_cuda, f"{name}_backward")(dy, operand, *numbers, dx)
    if name == "gelu_tanh":
        # The CPU's, which has its own tests, in float64.
        expected = np.empty(size)
        elementwise_cpu.gelu_tanh_backward(values(dy), values(x), expected)
    else:
        truth = getattr(reference, f"{name}_backward")
        expected = truth(values(dy), values(operand), *numbers)
    assert error(values(dx), expected) < ROUNDING[dtype]


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu"])
def test_activations_of_the_input_at_extremes(name):
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e30, -1e30, 1e-40], np.float32)
    y, dx = poisoned(8, "float32"), poisoned(8, "float32")
    getattr(elementwise_cuda, name)(x, y)
    getattr(elementwise_cuda, f"{name}_backward")(np.ones_like(x), x, dx)
    np.testing.assert_allclose(y, [np.nan, np.inf, 0, 0, 0, 1e30, 0, 5e-41], rtol=1e-4)
    np.testing.assert_allclose(dx, [np.nan, 1, 0, 0.5, 0.5, 1, 0, 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", OF_OUTPUT)
def test_activations_of_extremes(name):
    x = np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1e30, -1e30, 1e-40], np.float32)
    y = poisoned(8, "float32")
    getattr(elementwise_cuda, name)(x, y)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(y, getattr(reference, name)(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_gradient_where_the_output_is_not_positive(dtype):
    y = stored(np.array([np.nan, np.inf, -np.inf, 0, -0.0, 1, -1, 1e-7]), dtype)
    dy, dx = stored(np.full(8, 3.0), dtype), poisoned(8, dtype)
    elementwise_cuda.relu_backward(dy, y, dx)
    assert values(dx).tolist() == [0, 3, 0, 0, 0, 3, 0, 3]
    dy[:] = stored(np.array([np.nan]), dtype)
    elementwise_cuda.relu_backward(dy, y, dx)
    np.testing.assert_array_equal(values(dx), [0, np.nan, 0, 0, 0, np.nan, 0, np.nan])


@both_arranged
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_masks_select(size, dtype, arrange):
    mask = arrange(stored(np.arange(size) % 3 / 2, dtype))
    special = np.resize([np.inf, -np.inf, np.nan], size)
    x = arrange(stored(np.where(values(mask) > 0, 3.0, special), dtype))
    y = poisoned(size, dtype)
    elementwise_cuda.masked(x, mask, y)
    np.testing.assert_array_equal(values(y), np.where(values(mask) > 0, 3 * values(mask), 0))


@both_arranged
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_16_bit_number(dtype, arrange):
    """Each comes out as it went in, and sums are rounded to nearest even, bit for bit."""
    kind = np.dtype("float16" if dtype == "float16" else ml_dtypes.bfloat16)
    bits = np.random.default_rng(4).permutation(2**16).astype(np.uint16)
    x = arrange(bits.view(poisoned(1, dtype).dtype))
    wide = bits.view(kind).astype(np.float32)
    numbers, positive = ~np.isnan(wide), ~np.signbit(wide) | (wide == 0)

    y = poisoned(2**16, dtype)
    elementwise_cuda.relu(x, y)
    expected = np.where(positive, bits, 0)
    np.testing.assert_array_equal(y.view(np.uint16)[numbers], expected[numbers])
    assert np.isnan(y.view(kind)[~numbers]).all()

    rows, bias = x.reshape(-1, 64), arrange(x[:64])
    y = poisoned(rows.shape, dtype)
    elementwise_cuda.add_bias(rows, bias, y)
    with np.errstate(all="ignore"):
        expected = (wide.reshape(-1, 64) + wide[:64]).astype(kind)
    nan = np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(y.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])
    assert np.isnan(y.view(kind)[nan]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 8), (50, 24), (70, 5), (300, 16)], ids=str)
def test_bias(shape, dtype, schedule):
    x, bias = random(shape, dtype), random(shape[1], dtype, 1)
    y, total = poisoned(shape, dtype), poisoned(shape[1], dtype)
    elementwise_cuda.add_bias(x, shifted(bias), y)
    assert error(values(y), values(x) + values(bias)) < ROUNDING[dtype]
    elementwise_cuda.bias_gradient(x, total)
    assert error(values(total), values(x).sum(axis=0)) < ROUNDING[dtype]


# ---------------------------------------------------------------------------------- softmax


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_softmax(shape, dtype, schedule):
    x, dy = random(shape, dtype), random(shape, dtype, 1)
    for name in ("softmax", "log_softmax"):
        y, dx = poisoned(shape, dtype), poisoned(shape, dtype)
        getattr(softmax_cuda, name)(x, y)
        expected = getattr(reference, name)(values(x))
        assert error(values(y), expected) < ROUNDING[dtype]
        getattr(softmax_cuda, f"{name}_backward")(dy, y, dx)
        expected = getattr(reference, f"{name}_backward")(values(dy), values(y))
        assert error(values(dx), expected) < 2 * ROUNDING[dtype]


def unweighted(dtype):
    """No weights of classes, no label that is ignored, no smoothing."""
    return np.empty(0, statistics_type(dtype)), NO_LABEL, 0.0


# None: neither weights of classes nor labels that are ignored.
@pytest.mark.parametrize("smoothing", [None, 0.0, 0.3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_cross_entropy(shape, dtype, smoothing, schedule):
    logits, weights = random(shape, dtype), random(shape[0], dtype, 1)
    generator = np.random.default_rng(2)
    weight = generator.uniform(0.5, 2, shape[1]).astype(statistics_type(dtype))
    labels = generator.integers(0, shape[1], shape[0])
    given, options, tolerance = unweighted(dtype), {}, ROUNDING[dtype]
    if smoothing is not None:
        labels[::3] = -7
        logits[::3] = stored(np.full(shape, np.nan), dtype)[::3]
        given, tolerance = (weight, -7, smoothing), 2 * tolerance
        options = {"weight": weight, "ignored": -7, "smoothing": smoothing}
    loss, total = poisoned(shape[0], dtype), poisoned(1, dtype)
    softmax_cuda.cross_entropy(logits, labels, *given, loss)
    expected = reference.cross_entropy(values(logits), labels, reduction="none", **options)
    assert error(values(loss), expected) < tolerance
    softmax_cuda.scaled_sum(loss, 0.25, total)
    assert error(values(total), [values(loss).sum() / 4]) < ROUNDING[dtype]
    for dloss in (weights, weights[:1]):
        dlogits = poisoned(shape, dtype)
        softmax_cuda.cross_entropy_backward(logits, labels, *given, dloss, 0.5, dlogits)
        expected = reference.cross_entropy_backward(
            values(logits), labels, 0.5 * values(dloss), reduction="none", **options
        )
        assert error(values(dlogits), expected) < tolerance


def test_rows_with_extremes():
    x = np.array([[np.inf, 0, 1], [np.nan, 0, 1], [-np.inf, 0, 1], [1e38, -1e38, 0]], np.float32)
    y = poisoned(x.shape, "float32")
    with np.errstate(all="ignore"):
        for name in ("softmax", "log_softmax"):
            getattr(softmax_cuda, name)(x, y)
            np.testing.assert_allclose(y, getattr(reference, name)(x), rtol=1e-6)


def test_labels_out_of_range(schedule):
    logits = random((5, 3), "float32")
    labels = np.array([0, 3, 2, -1, 2**40])
    loss, dlogits, found = poisoned(5, "float32"), poisoned((5, 3), "float32"), np.zeros(1, int)
    softmax_cuda.cross_entropy(logits, labels, *unweighted("float32"), loss)
    assert np.isnan(loss).tolist() == [False, True, False, True, True]
    one = np.ones(1, np.float32)
    softmax_cuda.cross_entropy_backward(logits, labels, *unweighted("float32"), one, 1.0, dlogits)
    assert not dlogits[[1, 3, 4]].any()
    assert dlogits[[0, 2]].all()
    for count, position in ((5, 1), (4, 1), (1, -1)):
        softmax_cuda.first_bad_label(labels[:count], 3, NO_LABEL, found)
        assert found[0] == position
    many = np.zeros(100, int)
    many[[37, 50, 99]] = 9
    softmax_cuda.first_bad_label(many, 3, NO_LABEL, found)
    assert found[0] == 37
    softmax_cuda.first_bad_label(many, 3, 9, found)
    assert found[0] == -1


# ------------------------------------------------------------------- optimizers, dropout, data


@both_arranged
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("nesterov", [0, 1])
def test_sgd(size, dtype, momentum, nesterov, arrange):
    grad, data, velocity = (arrange(random(size, dtype, seed)) for seed in range(3))
    velocity = velocity if momentum else velocity[:0]
    hyper = np.array([0.1, 0.9, 0.01, nesterov], dtype)
    expected = data.copy(), velocity.copy()
    optim_cpu.sgd(grad, hyper, *expected)
    optim_cuda.sgd(grad, hyper, data, velocity)
    for found, wanted in zip((data, velocity), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6 if dtype == "float32" else 1e-14)


@both_arranged
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", SIZES)
def test_adam(size, dtype, arrange):
    grad, data, mean = (arrange(random(size, dtype, seed)) for seed in range(3))
    square = abs(random(size, dtype, 3))
    hyper = np.array([0.01, 0.9, 0.99, 0.1, 0.01, 1e-8, 0.02, 0.999, 3.0], dtype)
    expected = [array.copy() for array in (data, mean, square)]
    optim_cpu.adam(grad, hyper, *expected)
    optim_cuda.adam(grad, hyper, data, mean, square)
    for found, wanted in zip((data, mean, square), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-6 if dtype == "float32" else 1e-13)


@both_arranged
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [*SIZES, 1000])
def test_dropout_draws_the_bits_of_the_twin(size, dtype, arrange):
    key = np.array([0x0123456789ABCDEF], np.uint64)
    for p in (0.0, 0.3, 0.9):
        found, expected = arrange(poisoned(size, dtype)), poisoned(size, dtype)
        dropout_cuda.dropout_mask(key, p, found)
        dropout_cpu.dropout_mask(key, p, expected)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("features", [16, 13])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("scale", ["unit", "standard", "features"])
def test_gather_gives_the_bits_of_the_twin(rng, scale, dtype, features):
    """Every byte, in any position of the lanes."""
    images = rng.permuted(np.arange(256 * features) % 256).astype(dtype).reshape(256, features)
    index = rng.integers(0, 256, 90)
    name, factors = "gather_scale", (1 / 255, 0.0)
    if scale == "standard":
        factors = 1 / 255 / 0.3081, -0.1307 / 0.3081
    elif scale == "features":
        name, factors = "gather_scale_features", rng.standard_normal((2, features))
    results = []
    for twin in (gather_cuda, gather_cpu):
        x = poisoned((90, features), "float32")
        getattr(twin, name)(images, index, *factors, x)
        results.append(x)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_gather_targets(rng, dtype, shape):
    targets, index = rng.integers(0, 99, (256, *shape)).astype(dtype), rng.integers(0, 256, 90)
    for twin in (gather_cuda, gather_cpu):
        y = np.empty((90, *shape), dtype)
        twin.gather_targets(targets, index, y)
        np.testing.assert_array_equal(y, targets[index])
