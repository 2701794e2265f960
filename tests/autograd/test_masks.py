"""Masks select: where one is closed nothing passes, not even NaN or an infinity, which 0 * x is."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, ops
from nbbn import functional as F  # noqa: N812 - the usual name

SPECIAL = [np.inf, -np.inf, np.nan]
DTYPES = [np.float32, np.float64]


def gradients(function, arrays, dy, create_graph):
    """Gradients of function(*tensors), from `dy`, by the tape or by the rules on tensors."""
    parameters = [Parameter(array) for array in arrays]
    with Tape() as tape:
        y = function(*parameters)
        if create_graph:
            return [g.data for g in nbbn.grad(y, parameters, dy, create_graph=True)]
    tape.backward(y, dy)
    return [p.grad for p in parameters]


def normalized(norm, **options):
    def function(x, gamma, beta, *residual):
        y = norm(x, gamma, beta, *residual, activation="relu", **options)
        return y[0] if isinstance(y, tuple) else y

    return function


STATISTICS = np.array([0.1, -0.2, 0.3]), np.array([0.5, 1.0, 2.0])
WEIGHTS = np.array([1.0, 0, 2, 1, 0, 1, 1, 1])
MASKED = {
    "relu": (ops.relu, 1),
    "dropout": (lambda x: ops.dropout(x, 0.5, np.random.default_rng(1)), 1),
    "batch_norm_train": (normalized(ops.batch_norm_train), 3),
    "batch_norm_train, residual": (normalized(ops.batch_norm_train), 4),
    "batch_norm_infer": (
        normalized(lambda x, *rest, **options: ops.batch_norm_infer(
            x, *(s.astype(x.dtype) for s in STATISTICS), *rest, **options
        )), 3,
    ),
    "weighted": (
        normalized(lambda x, *rest, **options: ops.weighted_batch_norm(
            x, WEIGHTS, *rest, **options
        )), 3,
    ),
    "ghost": (normalized(ops.ghost_batch_norm, size=4), 3),
    "renorm": (
        normalized(lambda x, *rest, **options: ops.batch_renorm(
            x, *STATISTICS, np.array([3.0, 5.0]), *rest, **options
        )), 3,
    ),
}  # fmt: skip
WITHOUT_RULE = {"weighted", "ghost", "renorm"}


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", MASKED)
def test_a_closed_mask_lets_no_gradient_pass(name, create_graph, dtype, special, rng):
    """Gradients are those of a zero there, whatever comes in."""
    if create_graph and name in WITHOUT_RULE:
        pytest.skip("no second derivative")
    function, count = MASKED[name]
    shapes = [(8, 3), (3,), (3,), (8, 3)][:count]
    arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    closed = function(*map(nbbn.Tensor, arrays)).data == 0
    assert 4 <= closed.sum() <= 20
    dy = rng.normal(size=(8, 3)).astype(dtype)
    found = gradients(function, arrays, np.where(closed, dtype(special), dy), create_graph)
    want = gradients(function, arrays, np.where(closed, dtype(0), dy), create_graph)
    for got, expected in zip(found, want, strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_slope_of_a_root_behind_a_relu(dtype):
    """0 ** 0.5 has an infinite slope, and the ReLU's mask is closed there."""
    p = Parameter(np.array([1, -1], dtype))
    with np.errstate(divide="ignore"), Tape() as tape:
        root = (ops.relu(p) ** 0.5).sum()
        (slope,) = nbbn.grad(root, [p], create_graph=True)
        penalty = (slope * slope).sum()
        np.testing.assert_array_equal(slope.data, [0.5, 0])
        np.testing.assert_array_equal(nbbn.grad(root, [p])[0].data, [0.5, 0])
        tape.backward(root)
    np.testing.assert_array_equal(p.grad, [0.5, 0])
    assert penalty.item() == 0.25


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("name", ["relu", "max", "max, axis", "power 0", "index"])
def test_special_gradients_are_those_of_torch(name, special, create_graph):
    torch = pytest.importorskip("torch")
    ours, theirs = {
        "relu": (ops.relu, torch.relu),
        "max": (lambda x: x.max(), lambda x: x.max()),
        "max, axis": (lambda x: x.max(axis=1), lambda x: x.max(dim=1).values),
        "power 0": (lambda x: x**0, lambda x: x**0),
        "index": (lambda x: x[1], lambda x: x[1]),
    }[name]
    x = np.array([[0.0, -2.0, 1.5], [3.0, -1.0, 2.0]])
    leaf = torch.tensor(x, requires_grad=True)
    y = theirs(leaf)
    dy = np.full(y.shape, 2.0)
    dy.flat[0] = special
    y.backward(torch.tensor(dy))
    with np.errstate(divide="ignore", invalid="ignore"):
        (found,) = gradients(ours, [x], dy, create_graph)
    np.testing.assert_array_equal(found, leaf.grad.numpy())


@pytest.mark.parametrize("special", [*SPECIAL, 6.0])
@pytest.mark.parametrize("create_graph", [False, True])
def test_ties_share_what_comes_in_and_others_get_nothing(create_graph, special):
    x = np.array([[1.0, 3.0, 3.0], [5.0, 4.0, 4.0]])
    dy = np.array([special, 1.0])
    (found,) = gradients(lambda x: x.max(axis=1), [x], dy, create_graph)
    np.testing.assert_array_equal(found, [[0, special / 2, special / 2], [1, 0, 0]])


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_of_a_nan_maximum_goes_to_the_nan(create_graph):
    """As PyTorch's; no division by a number of ties that is 0."""
    torch = pytest.importorskip("torch")
    x = np.array([1.0, np.nan, 3.0])
    leaf = torch.tensor(x, requires_grad=True)
    leaf.max().backward()
    (found,) = gradients(lambda x: x.max(), [x], np.ones(()), create_graph)
    np.testing.assert_array_equal(found, leaf.grad.numpy())


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_drops_what_is_not_finite(dtype, special):
    """Forward too."""
    kept = ops.dropout(np.ones(100, dtype), 0.5, np.random.default_rng(0)).data > 0
    x = np.where(kept, dtype(3), dtype(special))
    y = ops.dropout(x, 0.5, np.random.default_rng(0)).data
    np.testing.assert_array_equal(y, np.where(kept, dtype(6), dtype(0)))


@pytest.mark.parametrize("special", SPECIAL)
def test_dropout_of_an_array_that_is_not_contiguous(special):
    x = np.ones((6, 4), np.float32)
    x[0, 1] = special
    dense = ops.dropout(np.ascontiguousarray(x.T), 0.5, np.random.default_rng(0)).data
    np.testing.assert_array_equal(ops.dropout(x.T, 0.5, np.random.default_rng(0)).data, dense)


@pytest.mark.parametrize("special", SPECIAL)
def test_a_correction_that_is_off_passes_nothing(special, rng):
    """Renormalization with r = 1 and d = 0 is batch normalization."""
    x, gamma, beta = rng.normal(size=(8, 3)), rng.normal(size=3), rng.normal(size=3)
    dy = rng.normal(size=(8, 3))
    dy[2, 1] = special

    def renormalized(x, gamma, beta):
        return ops.batch_renorm(x, *STATISTICS, np.array([1.0, 0.0]), gamma, beta)[0]

    found = gradients(renormalized, [x, gamma, beta], dy, False)
    want = gradients(lambda *a: ops.batch_norm_train(*a)[0], [x, gamma, beta], dy, False)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("slope", [0.01, 1.0])
def test_in_place_leaky_relu_scales_what_comes_in(slope, special, rng):
    """It has no closed mask: what is not finite goes on, in its own channel alone."""
    x, gamma, beta = rng.normal(size=(8, 3)), rng.normal(size=3), rng.normal(size=3)
    dy = rng.normal(size=(8, 3))
    plain = gradients(
        lambda *a: ops.in_place_batch_norm(*a, slope=slope)[0], [x, gamma, beta], dy, False
    )
    dy[2, 1] = special
    found = gradients(
        lambda *a: ops.in_place_batch_norm(*a, slope=slope)[0], [x, gamma, beta], dy, False
    )
    for got, expected in zip(found, plain, strict=True):
        np.testing.assert_array_equal(got[..., [0, 2]], expected[..., [0, 2]])
        assert not np.isfinite(got[..., 1]).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_open_masks_pass_what_torch_passes(dtype, special, create_graph, training, rng):
    """Batch normalization with a ReLU behind it; all gradients of all channels."""
    torch = pytest.importorskip("torch")
    arrays = [rng.normal(size=shape).astype(dtype) for shape in ((8, 3), (3,), (3,))]
    statistics = [s.astype(dtype) for s in STATISTICS]
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    y = torch.nn.functional.batch_norm(
        leaves[0], *(torch.tensor(s) for s in statistics), *leaves[1:], training
    ).relu()
    dy = rng.normal(size=(8, 3)).astype(dtype)
    dy[tuple(np.argwhere(y.detach().numpy() > 0)[0])] = special
    y.backward(torch.tensor(dy))
    if training:
        function = normalized(ops.batch_norm_train)
    else:
        function = normalized(
            lambda x, *rest, **o: ops.batch_norm_infer(x, *statistics, *rest, **o)
        )
    found = gradients(function, arrays, dy, create_graph)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    for position, (got, leaf) in enumerate(zip(found, leaves, strict=True)):
        want = leaf.grad.numpy()
        if training and position == 0:
            # The channel's sums reach all of its elements: there, which way depends on the order.
            np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
            got, want = got[np.isfinite(want)], want[np.isfinite(want)]
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("special", SPECIAL)
@pytest.mark.parametrize("shape", [(300, 5), (3, 5, 40), (2, 5, 3000), (1, 5, 1), (40, 1)])
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_of_all_layouts_select(dtype, fixed, shape, special, rng):
    """Whole vectors, their tails, rows, planes and groups of channels."""
    x, dy = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    gamma = rng.normal(size=shape[1]).astype(dtype)
    y, stats = F.batch_norm_train(x, gamma, activation="relu", single=True)
    closed = y <= 0

    def backward(gradient):
        if fixed:
            return F.batch_norm_infer_backward(gradient, x, stats.mean, stats.var, gamma, y=y)
        return F.batch_norm_backward(gradient, x, stats, gamma, y=y)

    found = backward(np.where(closed, dtype(special), dy))
    for got, expected in zip(found, backward(np.where(closed, dtype(0), dy)), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_mask_in_a_gradient_is_differentiated_again(rng):
    """Its second derivative selects too, and a third is the selection again."""
    x = rng.normal(size=(8, 3))
    for function in (ops.relu, lambda t: t.max(axis=1), MASKED["dropout"][0]):
        p = Parameter(x)
        with Tape() as tape:
            value = (function(p * p * p) ** 3).sum()
            for _ in range(2):
                (slope,) = nbbn.grad(value, [p], create_graph=True)
                value = (slope * slope).sum()
        tape.backward(value)
        assert np.isfinite(p.grad).all()
        assert (p.grad != 0).any()
