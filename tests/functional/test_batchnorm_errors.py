"""What batch normalization refuses, and that a refused call has changed nothing."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import Convention
from nbbn import functional as fn
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError
from tests.helpers import reference
from tests.helpers.batchnorm_cases import Case, assert_close, assert_forward
from tests.helpers.views import read_only

X = np.arange(12.0).reshape(4, 3)
ROW = np.ones(3)
STATS = fn.BatchNormStats(np.zeros(3), np.ones(3), np.ones(3), 4)


def everything(x):
    """Every function that takes x, called with `x` and otherwise valid arguments for (4, 3)."""
    return [
        lambda: fn.batch_norm_train(x),
        lambda: fn.batch_norm_infer(x, ROW, ROW),
        lambda: fn.batch_norm_backward(X, x, STATS),
        lambda: fn.batch_norm_infer_backward(X, x, ROW, ROW),
        lambda: fn.batch_norm(x, ROW.copy(), ROW.copy()),
        lambda: fn.batch_norm(x, ROW.copy(), ROW.copy(), training=True),
    ]


@pytest.mark.parametrize("shape", [(), (3,), (1, 1, 1, 1, 3, 1)])
@pytest.mark.parametrize("which", range(6))
def test_rank_of_x(which, shape):
    with pytest.raises(ShapeError):
        everything(np.ones(shape))[which]()


@pytest.mark.parametrize("shape", [(4, 0), (4, 0, 5), (0, 0)])
def test_no_channels(shape):
    x, empty = np.ones(shape), np.ones(0)
    with pytest.raises(ShapeError, match="channel"):
        fn.batch_norm_train(x)
    with pytest.raises(ShapeError, match="channel"):
        fn.batch_norm_infer(x, empty, empty)
    with pytest.raises(ShapeError, match="channel"):
        fn.batch_norm(x, empty, empty, training=True)


@pytest.mark.parametrize("axis", [2, -3, 17])
def test_axis_out_of_range(axis):
    for call in (
        lambda: fn.batch_norm_train(X, axis=axis),
        lambda: fn.batch_norm_infer(X, ROW, ROW, axis=axis),
        lambda: fn.batch_norm_backward(X, X, STATS, axis=axis),
        lambda: fn.batch_norm_infer_backward(X, X, ROW, ROW, axis=axis),
        lambda: fn.batch_norm(X, ROW.copy(), ROW.copy(), axis=axis),
    ):
        with pytest.raises((ShapeError, ArgumentError), match=f"axis.*{axis}"):
            call()


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 5), 1), ((5, 1), 0), ((1, 5, 1, 1), 1), ((1, 1, 7), -1), ((1, 1), 1)]
)
def test_one_value_per_channel(shape, axis):
    x = np.ones(shape, np.float32)
    buffers = [np.full(shape[axis], 0.5) for _ in range(2)]
    with pytest.raises((ShapeError, ArgumentError), match="Expected more than 1 value per channel"):
        fn.batch_norm_train(x, axis=axis)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        fn.batch_norm(x, *buffers, training=True, axis=axis)
    assert np.all(np.equal(buffers, 0.5))


@pytest.mark.parametrize("eps", [0, 0.0, -1e-5, np.nan, 10**400])
def test_eps_in_training(eps):
    for call in (
        lambda: fn.batch_norm_train(X, eps=eps),
        lambda: fn.batch_norm(X, ROW.copy(), ROW.copy(), training=True, eps=eps),
    ):
        with pytest.raises(ArgumentError, match="eps"):
            call()


@pytest.mark.parametrize("eps", [-1e-5, np.nan])
def test_eps_in_inference(eps):
    for call in (
        lambda: fn.batch_norm_infer(X, ROW, ROW, eps=eps),
        lambda: fn.batch_norm_infer_backward(X, X, ROW, ROW, eps=eps),
        lambda: fn.batch_norm(X, ROW, ROW, eps=eps),
    ):
        with pytest.raises(ArgumentError, match="eps"):
            call()


def test_eps_zero_is_allowed_in_inference(rng):
    case = Case(rng, (6, 4), 1)
    given = (case.x, case.mean, case.var, case.gamma)
    assert_forward(
        fn.batch_norm_infer(*given, case.beta, eps=0),
        reference.batch_norm_infer(*given, case.beta, eps=0),
        np.float64,
    )
    assert_forward(
        fn.batch_norm(*given, case.beta, eps=0),
        reference.batch_norm_infer(*given, case.beta, eps=0),
        np.float64,
    )
    got = fn.batch_norm_infer_backward(case.dy, *given, eps=0)
    want = reference.batch_norm_infer_backward(case.dy, *given, eps=0)
    for array, truth in zip(got, want, strict=True):
        assert_close(array, truth, 10, np.float64)


WRONG_VECTORS = {
    "backward gamma": lambda v: fn.batch_norm_backward(X, X, STATS, v),
    "infer backward mean": lambda v: fn.batch_norm_infer_backward(X, X, v, ROW),
    "infer backward var": lambda v: fn.batch_norm_infer_backward(X, X, ROW, v),
    "infer backward gamma": lambda v: fn.batch_norm_infer_backward(X, X, ROW, ROW, v),
    "update running_mean": lambda v: fn.update_running_stats(v, ROW.copy(), STATS),
    "update running_var": lambda v: fn.update_running_stats(ROW.copy(), v, STATS),
    "batch_norm running_mean": lambda v: fn.batch_norm(X, v, ROW.copy()),
    "batch_norm running_var": lambda v: fn.batch_norm(X, ROW.copy(), v, training=True),
    "batch_norm gamma": lambda v: fn.batch_norm(X, ROW, ROW, v),
    "batch_norm beta": lambda v: fn.batch_norm(X, ROW.copy(), ROW.copy(), None, v, training=True),
}


@pytest.mark.parametrize("shape", [(4,), (1,), (0,), (), (1, 3), (3, 1)])
@pytest.mark.parametrize("name", WRONG_VECTORS)
def test_shape_of_a_vector(name, shape):
    with pytest.raises(ShapeError, match=name.split()[-1]):
        WRONG_VECTORS[name](np.ones(shape))


@pytest.mark.parametrize("dtype", [np.int32, np.complex128, object])
@pytest.mark.parametrize("name", WRONG_VECTORS)
def test_type_of_a_vector(name, dtype):
    with pytest.raises(DTypeError, match=name.split()[-1]):
        WRONG_VECTORS[name](np.ones(3, dtype))


WRONG_ARRAYS = {
    "backward y": lambda a: fn.batch_norm_backward(X, X, STATS, y=a),
    "infer backward y": lambda a: fn.batch_norm_infer_backward(X, X, ROW, ROW, y=a),
    "batch_norm out": lambda a: fn.batch_norm(X, ROW.copy(), ROW.copy(), training=True, out=a),
}


@pytest.mark.parametrize("shape", [(3, 4), (1, 3), (4, 3, 1), (12,), (5, 3)])
@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_shape_of_an_array(name, shape):
    with pytest.raises(ShapeError, match=name.split()[-1]):
        WRONG_ARRAYS[name](np.ones(shape))


@pytest.mark.parametrize("dtype", [np.int64, np.complex64, object])
@pytest.mark.parametrize("name", WRONG_ARRAYS)
def test_type_of_an_array(name, dtype):
    with pytest.raises(DTypeError, match=name.split()[-1]):
        WRONG_ARRAYS[name](np.ones((4, 3), dtype))


def test_stats_of_another_array():
    narrow = fn.BatchNormStats(np.zeros(2), np.ones(2), np.ones(2), 4)
    with pytest.raises(ShapeError):
        fn.batch_norm_backward(X, X, narrow)
    with pytest.raises(ShapeError):
        fn.update_running_stats(ROW.copy(), ROW.copy(), narrow)


def test_activation_unknown():
    for call in (
        lambda: fn.batch_norm_train(X, activation="gelu"),
        lambda: fn.batch_norm_infer(X, ROW, ROW, activation="gelu"),
    ):
        with pytest.raises(ArgumentError, match="gelu"):
            call()


def test_momentum_must_be_a_number():
    for momentum in (np.nan, np.inf):
        with pytest.raises(ArgumentError, match="momentum"):
            fn.update_running_stats(ROW.copy(), ROW.copy(), STATS, momentum=momentum)
        with pytest.raises(ArgumentError, match="momentum"):
            fn.batch_norm(X, ROW.copy(), ROW.copy(), training=True, momentum=momentum)
    for momentum in (np.array(np.nan), np.array(7.0)):
        with pytest.raises(ArgumentError, match="momentum"):
            fn.update_running_stats(ROW.copy(), ROW.copy(), STATS, momentum=momentum)
    for momentum in (np.array([0.1]), np.array("a"), np.array(0.1j)):
        with pytest.raises(DTypeError, match="momentum must be a number"):
            fn.update_running_stats(ROW.copy(), ROW.copy(), STATS, momentum=momentum)


@pytest.mark.parametrize("momentum", [-0.5, 1.5, 7, np.nan, np.inf, np.float32(2)])
def test_momentum_that_is_not_used_may_be_anything(momentum):
    """As in PyTorch: inference, no running statistics, one value per channel that moves none."""
    expected = fn.batch_norm_infer(X, ROW, ROW)
    y = fn.batch_norm(X, ROW, ROW, momentum=momentum)
    np.testing.assert_array_equal(y, expected)
    fn.batch_norm(X, training=True, momentum=momentum)
    one = X[:1]
    for on_single in ("eval", "skip"):
        mean, var = ROW.copy(), ROW.copy()
        fn.batch_norm(one, mean, var, training=True, momentum=momentum, on_single=on_single)
    with pytest.raises(ArgumentError, match="momentum"):
        fn.batch_norm(X, ROW.copy(), ROW.copy(), training=True, momentum=momentum)


def test_momentum_that_is_not_used_is_a_number():
    for momentum in ("fast", None, np.ones(2), True, 1j):
        with pytest.raises(DTypeError, match="momentum must be a number"):
            fn.batch_norm(X, ROW, ROW, momentum=momentum)


def test_nothing_is_written_when_the_momentum_is_refused():
    mean, var, out = ROW.copy(), ROW.copy(), np.full_like(X, 7)
    with pytest.raises(ArgumentError, match=r"momentum must be at least 0 and at most 1, got 1\.5"):
        fn.batch_norm(X, mean, var, training=True, momentum=1.5, out=out)
    np.testing.assert_array_equal(mean, ROW)
    np.testing.assert_array_equal(var, ROW)
    assert (out == 7).all()


def test_the_momentum_of_a_layer_matters_in_training():
    """Set on a layer, which refuses it when it is made."""
    layer = nbbn.BatchNorm(X.shape[1], dtype=X.dtype)
    layer.momentum = 1.5
    layer.eval()(X)
    layer.frozen = True
    layer.train()(X)
    layer.frozen = False
    before = layer.state_dict()
    with pytest.raises(ArgumentError, match="momentum"):
        layer(X)
    for name, array in layer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


STATISTIC = np.ones(4)
RANK_1 = {
    "batch_norm_train": lambda x, axis: fn.batch_norm_train(x, axis=axis),
    "batch_norm_infer": lambda x, axis: fn.batch_norm_infer(x, STATISTIC, STATISTIC, axis=axis),
    "batch_norm": lambda x, axis: fn.batch_norm(x, axis=axis),
    "batch_norm_backward": lambda x, axis: fn.batch_norm_backward(x, x, STATS, axis=axis),
    "weighted": lambda x, axis: fn.weighted_batch_norm_train(x, STATISTIC, axis=axis),
    "layer": lambda x, axis: nbbn.BatchNorm(4, convention=Convention(axis=axis))(x),
    "keras layer": lambda x, axis: nbbn.BatchNorm(4, convention=Convention.of("keras", axis=axis))(
        x
    ),
    "layer of other channels": lambda x, axis: nbbn.BatchNorm(3, convention=Convention(axis=axis))(
        x
    ),
    "ghost": lambda x, axis: nbbn.GhostBatchNorm(4, 2, convention=Convention(axis=axis))(x),
    "evaluation": lambda x, axis: nbbn.BatchNorm(4, convention=Convention(axis=axis)).eval()(x),
}


@pytest.mark.parametrize("axis", [1, -1, 0])
@pytest.mark.parametrize("name", RANK_1)
def test_an_array_of_one_dimension_learns_which_to_add(name, axis):
    x = np.arange(4.0)
    with pytest.raises(ShapeError) as caught:
        RANK_1[name](x, axis)
    message = str(caught.value)
    assert "shape (4,)" in message
    one, many = ("x[:, None]", "x[None, :]") if axis == 0 else ("x[None, :]", "x[:, None]")
    assert f"{one} is one example of 4 channels" in message
    assert f"{many} is 4 examples of one channel" in message


def test_an_array_of_no_dimensions_is_refused():
    with pytest.raises(ShapeError, match=r"2 to 5 dimensions, got shape \(\)"):
        fn.batch_norm_train(np.array(1.0))


def test_options_that_are_arrays():
    for axis in (np.array([0, 1]), np.array(1.0)):
        with pytest.raises(DTypeError, match="axis must be an integer, got ndarray"):
            fn.batch_norm_train(X, axis=axis)
    with pytest.raises(ArgumentError, match="activation must be one of"):
        fn.batch_norm_train(X, activation=np.array(["relu", "relu"]))


def test_one_buffer_without_the_other():
    for buffers in ((ROW, None), (None, ROW)):
        with pytest.raises(NbbnError, match="running_"):
            fn.batch_norm(X, *buffers)


def test_a_failed_call_leaves_the_buffers_alone():
    """Half an update would be worse than none."""
    mean, wrong = np.zeros(3), np.zeros(4)
    fixed = read_only(np.ones(3))
    for call in (
        lambda: fn.update_running_stats(mean, wrong, STATS),
        lambda: fn.update_running_stats(mean, fixed, STATS),
        lambda: fn.update_running_stats(fixed, mean, STATS),
        lambda: fn.update_running_stats(mean, ROW.copy(), STATS, momentum=np.nan),
        lambda: fn.batch_norm(X, mean, wrong, training=True),
        lambda: fn.batch_norm(X, mean, ROW.copy(), np.ones(2), training=True),
        lambda: fn.batch_norm(X, mean, ROW.copy(), training=True, eps=-1),
        lambda: fn.batch_norm(X, mean, ROW.copy(), training=True, momentum=np.nan),
        lambda: fn.batch_norm(X, mean, ROW.copy(), training=True, out=np.ones((3, 4))),
    ):
        with pytest.raises(NbbnError):
            call()
        np.testing.assert_array_equal(mean, np.zeros(3))
