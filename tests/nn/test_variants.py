"""Masks and weights, and the layers that normalize batches in other ways."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

import nbbn
import nbbn.functional as F  # noqa: N812 - the usual name
from nbbn import Convention, Parameter, Tape, losses, optim
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError
from tests.helpers import reference
from tests.helpers.layers import assert_all_close, assert_close, assert_states_close, run, state_of
from tests.helpers.refusals import refusing

# ------------------------------------------------------------------------------ weights


AXES = [
    ((8, 3), 1, (8,)), ((8, 3), -1, (8,)), ((3, 8), 0, (8,)), ((4, 3, 5), 1, (4,)),
    ((4, 3, 5), 1, (4, 5)), ((4, 3, 5), 1, (1, 5)), ((4, 5, 3), -1, (4, 5)),
    ((4, 5, 3), -1, (4, 1)), ((3, 4, 5), 0, (4, 5)), ((2, 3, 4, 5), 1, (2, 4, 5)),
    ((2, 3, 4, 5), 2, (2, 3, 5)), ((2, 4, 5, 3), 3, (4, 5)), ((6, 1, 5), 1, (6, 5)),
    ((4, 3, 5), 1, (5,)),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "axis", "weight_shape"), AXES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_weights_of_any_shape_on_any_axis(shape, axis, weight_shape, order, rng):
    """Equal to the definition with the weights spread over all positions."""
    x = np.array(rng.normal(size=shape), order=order)
    weights = rng.uniform(0.1, 2, weight_shape)
    positions = np.delete(shape, axis)
    examples = weights.shape == (positions[0],)
    spread = weights.reshape(-1, *(1 for _ in positions[1:])) if examples else weights
    full = np.broadcast_to(spread, positions)
    y, stats = F.weighted_batch_norm_train(x, weights, eps=0.02, axis=axis)
    want = reference.weighted_statistics(x, full, eps=0.02, axis=axis)
    for name in ("mean", "var", "inv_std", "count"):
        assert_close(getattr(stats, name), getattr(want, name))
    assert_close(stats.weight, full.sum())
    assert_close(y, reference.weighted_batch_norm(x, full, eps=0.02, axis=axis))
    dy = rng.normal(size=shape)

    def loss(x):
        return float(np.sum(dy * reference.weighted_batch_norm(x, full, eps=0.02, axis=axis)))

    dx, _, _ = F.weighted_batch_norm_backward(dy, x, weights, stats, axis=axis)
    assert_close(dx, reference.central_difference(loss, x), 1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3000, 40), (20, 7, 900), (3, 1, 40_000)])
def test_equal_weights_are_no_weights(shape, dtype, rng):
    """Over many blocks, and with a mean far from 0."""
    x = (rng.normal(size=shape) + 1000).astype(dtype)
    dy = rng.normal(size=shape).astype(dtype)
    positions = shape[:1] + shape[2:]
    weights = np.full(positions, 0.3)
    y, stats = F.weighted_batch_norm_train(x, weights)
    want, plain = F.batch_norm_train(x)
    tolerance = 1e-6 if dtype == np.float32 else 1e-11
    np.testing.assert_allclose(stats.mean, plain.mean, rtol=1e-12)
    np.testing.assert_allclose(stats.var, plain.var, rtol=tolerance)
    np.testing.assert_allclose(stats.count, plain.count, rtol=1e-12)
    assert_close(y, want, 10 * tolerance)
    found = F.weighted_batch_norm_backward(dy, x, weights, stats)
    for got, expected in zip(found, F.batch_norm_backward(dy, x, plain), strict=True):
        assert_close(got / np.abs(expected).max(), expected / np.abs(expected).max(), tolerance)


@pytest.mark.parametrize("shape", [(9, 3), (5, 3, 4)])
def test_a_mask_is_the_batch_without_what_it_hides(shape, rng):
    """Padding holds NaN; what is left is normalized as if it were alone."""
    layer, alone = (nbbn.BatchNorm(3, dtype=np.float64) for _ in range(2))
    x, mask = rng.normal(size=shape), rng.random(shape[:1] + shape[2:]) < 0.6
    rows = np.moveaxis(x, 1, -1)[mask]
    np.moveaxis(x, 1, -1)[~mask] = np.nan
    y = layer(x, weights=mask).data
    assert_close(np.moveaxis(y, 1, -1)[mask], alone(rows).data)
    assert_states_close(layer, alone)


@pytest.mark.parametrize("padding", [0.0, np.nan, np.inf, 1e308])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(9, 3), (9, 3, 4)])
def test_a_mask_passes_the_gradients_of_what_it_shows(shape, order, padding, rng):
    x, dy, mask = rng.normal(size=shape) / 9, rng.normal(size=shape), np.arange(9) % 3 > 0
    x[~mask], dy[~mask] = padding, 0
    x = np.array(x, order=order)
    layer, alone = (nbbn.BatchNorm(3, dtype=np.float64) for _ in range(2))
    _, dx, found = run(layer, x, dy, weights=mask)
    _, expected, gradients = run(alone, x[mask], dy[mask])
    assert_close(dx[mask], expected)
    assert_close(dx[~mask], 0)
    assert_all_close(found, gradients)


def test_a_mask_in_keras_s_convention(rng):
    """Keras divides by sum(w) + 1e-7, which is below the sixth digit of any mask."""
    layer = nbbn.BatchNorm(3, convention=Convention.of("keras", momentum=0.75), dtype=np.float64)
    layer.gamma.data[...], layer.beta.data[...] = rng.uniform(0.5, 2, 3), rng.normal(size=3)
    x, mask = rng.normal(size=(4, 7, 3)), rng.random((4, 7)) < 0.7
    w = mask[..., None].astype(np.float64)
    mean = (w * x).sum(axis=(0, 1)) / (w.sum() + 1e-7)
    var = (w * (x - mean) ** 2).sum(axis=(0, 1)) / (w.sum() + 1e-7)
    want = layer.gamma.data * (x - mean) / np.sqrt(var + 1e-3) + layer.beta.data
    assert_close(layer(x, weights=mask).data, want, 1e-6)
    assert_close(layer.running_mean, 0.25 * mean, 1e-6)
    assert_close(layer.running_var, 0.75 + 0.25 * var, 1e-6)


@pytest.mark.parametrize("ratio", [1e3, 1e6])
@pytest.mark.parametrize(("shape", "axis"), [((4096, 64), 1), ((64, 32, 8, 8), 1)])
def test_weighted_variance_far_from_0(shape, axis, ratio, rng):
    """Float32 values, with a mean many times their spread, beside extended precision."""
    x = (rng.normal(size=shape) + ratio).astype(np.float32)
    weights = rng.random((shape[0], *shape[2:])) * (rng.random((shape[0], *shape[2:])) < 0.8)
    y, stats = F.weighted_batch_norm_train(x, weights, axis=axis)
    want = reference.weighted_statistics(x, weights, axis=axis)
    np.testing.assert_allclose(stats.var, want.var, rtol=1e-9)
    assert_close(y, reference.weighted_batch_norm(x, weights, axis=axis), 1e-5)


def test_a_sequential_hands_weights_to_its_norms(rng):
    """Rows of weight 0 change nothing for the others, in nested models too."""
    x, weights = rng.normal(size=(8, 4)), np.array([1, 1, 0, 2, 1, 0, 1, 3])
    found = []
    for change in (0, 5):
        model = nbbn.Sequential(network(0), nbbn.ReLU(), nbbn.BatchNorm(3, dtype=np.float64))
        model[0][2].eval()
        x[weights == 0] += change
        found.append((model(x, weights=weights).data[weights > 0], model))
    assert_close(found[1][0], found[0][0])
    assert_states_close(found[1][1], found[0][1])


def test_whole_weights_repeat_examples(rng):
    x, weights = rng.normal(size=(6, 3)), np.array([1, 2, 3, 1, 0, 2])
    _, stats = F.weighted_batch_norm_train(x, weights)
    _, want = F.batch_norm_train(np.repeat(x, weights, axis=0))
    assert_close(stats.mean, want.mean)
    assert_close(stats.var, want.var)


def test_scaling_all_weights_changes_nothing(rng):
    x, weights, dy = rng.normal(size=(6, 3)), rng.uniform(0, 1, 6), rng.normal(size=(6, 3))
    results = []
    for scale in (1, 1e-200, 1e150):
        layer = nbbn.BatchNorm(3, dtype=np.float64)
        y, dx, gradients = run(layer, x, dy, weights=scale * weights)
        results.append((y, dx, *gradients, layer.running_var))
        assert_all_close(results[-1], results[0])


def test_a_batch_without_weight_leaves_the_running_statistics_alone(rng):
    layer = nbbn.BatchNorm(3)
    y = layer(rng.normal(size=(4, 3)).astype(np.float32), weights=np.zeros(4, bool))
    assert np.isfinite(y.data).all()
    np.testing.assert_array_equal(layer.running_mean, np.zeros(3))
    np.testing.assert_array_equal(layer.running_var, np.ones(3))
    assert layer.num_batches_tracked == 1
    y, dx, _ = run(layer, np.zeros((0, 3), np.float32), weights=np.zeros(0))
    assert y.shape == dx.shape == (0, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_value_stays_in_its_channel(value, rng):
    x = rng.normal(size=(8, 3))
    x[0, 1] = x[5, 1] = value
    y, stats = F.weighted_batch_norm_train(x, np.ones(8))
    assert np.isfinite(y[:, [0, 2]]).all()
    assert np.isnan(stats.var[1])


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 40), (5000, 3)])
def test_weighted_deviations_beyond_float64_give_beta(shape, rng):
    weights = np.full(shape[0], 1e300 / shape[0])
    x = rng.normal(size=shape)
    x[:, 1] *= 1e10
    y, stats = F.weighted_batch_norm_train(x, weights, beta=np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(np.isinf(stats.var), [False, True, False])
    assert (y[:, 1] == 2).all()
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ([1.0, 2.0], DTypeError, "weights.*list"),
        (np.array(["a", "b"]), DTypeError, "weights.*<U1"),
        (np.ones(5), ShapeError, r"\(4,\).*\(5,\)"),
        (np.ones((4, 3)), ShapeError, r"\(4,\).*\(4, 3\)"),
        (np.array([1, 1, -0.5, 1]), ArgumentError, "negative.*-0.5"),
        (np.array([1, 1, np.nan, 1]), ArgumentError, "finite.*nan"),
        (np.full(4, 1e308), ArgumentError, r"finite sum, got weights up to 1e\+308: scale them"),
        (np.array([0, 0, 1, 0]), ShapeError, "one position has all the weight"),
        (Parameter(np.ones(4)), ArgumentError, "constants.*detach"),
    ],
    ids=str,
)
def test_wrong_weights_are_refused(weights, error, words):
    layer = nbbn.BatchNorm(3)
    with pytest.raises(error, match=words):
        layer(np.ones((4, 3), np.float32), weights=weights)
    assert layer.num_batches_tracked == 0


class Block(nbbn.Module):
    """Passes on no weights."""

    def __init__(self):
        super().__init__()
        self.norm = nbbn.BatchNorm(3)

    def forward(self, x):
        return self.norm(x)


def test_weighted_gradients_may_replace_what_the_forward_used(rng):
    x, dy, weights = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), rng.random(6)
    gamma = rng.normal(size=4)
    _, stats = F.weighted_batch_norm_train(x, weights, gamma)
    expected = F.weighted_batch_norm_backward(dy, x, weights, stats, gamma)
    for name, position in (("out_dgamma", 1), ("out_dbeta", 2)):
        for place in ("gamma", "mean", "inv_std"):
            scale = gamma.copy()
            own = stats._replace(mean=stats.mean.copy(), inv_std=stats.inv_std.copy())
            out = scale if place == "gamma" else getattr(own, place)
            found = F.weighted_batch_norm_backward(dy, x, weights, own, scale, **{name: out})
            assert found[position] is out
            assert_all_close(found, expected)


# ------------------------------------------------------------------------------ ghost


@pytest.mark.parametrize(("shape", "axis"), [((10, 3), 1), ((10, 2, 3), -1), ((3, 10), 0)])
def test_a_ghost_norm_normalizes_groups_and_remembers_the_whole(shape, axis, rng):
    ghost = nbbn.GhostBatchNorm(3, 4, convention=Convention(axis=axis), dtype=np.float64)
    whole = nbbn.BatchNorm(3, convention=Convention(axis=axis), dtype=np.float64)
    for _ in range(3):
        x = rng.normal(size=shape) + 4 * rng.normal(size=shape[0] // 3 or 1)[0]
        y = ghost(x).data
        whole(x)
        examples = 1 if axis == 0 else 0
        parts = [
            reference.batch_norm_train(part, axis=axis)[0]
            for part in np.split(x, [5], axis=examples)
        ]
        assert_close(y, np.concatenate(parts, axis=examples))
    assert_states_close(ghost, whole)
    assert_close(ghost.eval()(x).data, whole.eval()(x).data)


@pytest.mark.parametrize(("count", "size", "groups"), [(3, 4, 1), (7, 4, 1), (8, 4, 2), (11, 4, 2)])
def test_ghosts_are_never_smaller_than_asked(count, size, groups, rng):
    x = rng.normal(size=(count, 2))
    y = nbbn.GhostBatchNorm(2, size, dtype=np.float64)(x).data
    bounds = [count * n // groups for n in range(groups + 1)]
    for a, b in pairwise(bounds):
        assert_close(y[a:b].mean(axis=0), 0)


def test_merged_statistics_are_those_of_the_whole(rng):
    x = rng.normal(size=(50, 3)) + 1e6
    parts = [F.batch_norm_train(part)[1] for part in np.split(x, [2, 20, 20, 31])]
    merged, (_, want) = F.merge_stats(part for part in parts), F.batch_norm_train(x)
    assert merged.count == 50
    np.testing.assert_allclose(merged.mean, want.mean, rtol=1e-15)
    np.testing.assert_allclose(merged.var, want.var, rtol=1e-9)
    np.testing.assert_allclose(merged.inv_std, want.inv_std, rtol=1e-9)
    empty = F.merge_stats([F.batch_norm_train(x[:0])[1]])
    assert empty.count == 0
    assert_close(empty.var, 0)


# ------------------------------------------------------------------------------ renormalization


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(("r_max", "d_max"), [(1, 0), (1.1, 0.2), (3, 5), (1e9, 1e9)])
def test_renorm_matches_the_paper(r_max, d_max, activation, rng):
    """Value, and gradients by PyTorch with r and d detached."""
    torch = pytest.importorskip("torch")
    layer = nbbn.BatchRenorm(3, r_max=r_max, d_max=d_max, activation=activation, dtype=np.float64)
    layer.gamma.data[...], layer.beta.data[...] = rng.uniform(0.5, 2, 3), rng.normal(size=3)
    layer.running_mean[...], layer.running_var[...] = rng.normal(size=3), rng.uniform(0.2, 4, 3)
    given, affine = (layer.running_mean.copy(), layer.running_var.copy()), layer.parameters()
    x, dy = rng.normal(size=(2, 6, 3, 2))
    own = [p.data for p in affine]
    want, r, d = reference.batch_renorm(x, *given, (r_max, d_max), *own, activation=activation)
    y, dx, gradients = run(layer, x, dy)
    assert_close(y, want)
    if r_max > 1e6 and activation is None:
        assert_close(y, reference.batch_norm_infer(x, *given, *own))

    leaves = [torch.tensor(a, requires_grad=True) for a in (x, *own)]
    x_hat = torch.nn.functional.batch_norm(leaves[0], None, None, training=True)
    vectors = torch.tensor(r), torch.tensor(d), *leaves[1:]
    r, d, gamma, beta = (v.reshape(1, 3, 1) for v in vectors)
    y = gamma * (x_hat * r + d) + beta
    (y.relu() if activation else y).backward(torch.tensor(dy))
    assert_all_close((dx, *gradients), [leaf.grad.numpy() for leaf in leaves], 1e-10)
    mean, var = reference.running_stats(*given, reference.statistics(x))
    assert_close(layer.running_mean, mean)
    assert_close(layer.running_var, var)


def test_renorm_follows_its_schedules(rng):
    layer = nbbn.BatchRenorm(3, r_max=nbbn.Ramp(1, 3, 2, 4), d_max=lambda k: k, dtype=np.float64)
    for k in range(6):
        x = 3 * rng.normal(size=(5, 3)) + 2
        given = layer.running_mean.copy(), layer.running_var.copy()
        limits = ([1, 1, 1, 2, 3, 3][k], k)
        assert_close(layer(x).data, reference.batch_renorm(x, *given, limits)[0])


def test_renorm_starts_as_batch_norm(rng):
    x = rng.normal(size=(5, 3))
    first, plain = (kind(3, dtype=np.float64) for kind in (nbbn.BatchRenorm, nbbn.BatchNorm))
    assert_close(first(x).data, plain(x).data)


# ------------------------------------------------------------------------------ in place


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("slope", [0.01, 0.2, 1.0])
def test_in_place_equals_its_parts(slope, training, rng):
    torch = pytest.importorskip("torch")
    layer = nbbn.InPlaceBatchNorm(3, slope=slope, dtype=np.float64).train(training)
    layer.gamma.data[...], layer.beta.data[...] = [-1.5, 0.5, 1.0], rng.normal(size=3)
    x, dy = rng.normal(size=(2, 6, 3, 2))
    # Whatever the activation's input is 0 for: a constant channel, without a shift.
    x[:, 2], layer.beta.data[2] = 1, 0
    twin = torch.nn.BatchNorm1d(3, dtype=torch.float64).train(training)
    operands = (x, *(p.data for p in layer.parameters()))
    leaves = x_, gamma, beta = [torch.tensor(a, requires_grad=True) for a in operands]
    given = twin.running_mean, twin.running_var
    y = torch.nn.functional.batch_norm(x_, *given, gamma.abs() + 1e-5, beta, training)
    torch.nn.functional.leaky_relu(y, slope).backward(torch.tensor(dy))
    _, dx, gradients = run(layer, x, dy)
    assert_all_close((dx, *gradients), [leaf.grad.numpy() for leaf in leaves], 1e-9)
    assert_close(layer.running_var, twin.running_var.numpy())


def deep(norm, width, layers):
    blocks = [(nbbn.Dense(width, width, bias=False, rng=n), norm(width)) for n in range(layers)]
    return nbbn.Sequential(*(layer for block in blocks for layer in block))


def test_in_place_saves_an_array_per_layer(rng):
    """What a tape holds after the forward, in arrays of the size of an activation."""
    width, batch, layers = 32, 1024, 10
    x = rng.normal(size=(batch, width)).astype(np.float32)
    held = {}
    for name, norm in (("plain", nbbn.BatchNorm), ("in place", nbbn.InPlaceBatchNorm)):
        model = deep(norm, width, layers)
        model(x)
        tracemalloc.start()
        with Tape() as tape:
            y = model(x)
        held[name] = tracemalloc.get_traced_memory()[0] / x.nbytes
        tracemalloc.stop()
        tape.backward(y, np.ones_like(x))
    assert 2 * layers <= held["plain"] < 2 * layers + 1
    assert layers <= held["in place"] < layers + 1


def test_in_place_needs_less_of_a_recorded_step_s_arena(rng):
    sizes = {}
    for name, norm in (("plain", nbbn.BatchNorm), ("in place", nbbn.InPlaceBatchNorm)):
        model = nbbn.Sequential(deep(norm, 16, 8), nbbn.Dense(16, 3, rng=0))
        step = nbbn.train.record_step(model, losses.cross_entropy, optim.SGD(model.parameters()))
        for _ in range(3):
            step(rng.normal(size=(256, 16)).astype(np.float32), rng.integers(0, 3, 256))
        (plan,) = step._plans.values()
        sizes[name] = max(
            array.base.nbytes
            for _, args in plan._notes
            for array in args
            if isinstance(array, np.ndarray) and isinstance(array.base, np.ndarray)
        )
    assert sizes["in place"] < 0.7 * sizes["plain"]


def test_an_input_that_was_given_up_cannot_be_used_again(rng):
    x = rng.normal(size=(6, 4)).astype(np.float32)
    dense, norm = nbbn.Dense(4, 3, rng=0), nbbn.InPlaceBatchNorm(3)
    with Tape():
        h = dense(x)
        before = h * h
        norm(h)
        with pytest.raises(DTypeError, match="Released"):
            h + 1
        with pytest.raises(DTypeError, match="Released"):
            nbbn.ops.relu(h)
        uses = (np.asarray, repr, *(getattr(nbbn.Tensor, name) for name in ("numpy", "detach")))
        for use in (*uses, lambda h: h.T, lambda h: h[0]):
            with pytest.raises(DTypeError, match="Released, its values are gone"):
                use(h)
    assert np.isfinite(before.data).all()


def test_what_used_the_input_before_keeps_it(rng):
    """A leaf keeps its array, and so does what an earlier operation has saved."""
    x = rng.normal(size=(6, 3))
    leaf, norm = Parameter(x), nbbn.InPlaceBatchNorm(3, slope=1.0, dtype=np.float64)
    with Tape() as tape:
        h = leaf * 2.0
        loss = (h * h).sum() + (norm(h) * np.cos(x)).sum()
    tape.backward(loss)
    expected = 8 * x + reference.batch_norm_backward(np.cos(x), 2 * x, np.full(3, 1 + 1e-5))[0] * 2
    assert_close(leaf.grad, expected, 1e-9)
    assert leaf.data is x


# ------------------------------------------------------------------------------ recalibration


def network(rng, **options):
    return nbbn.Sequential(
        nbbn.Dense(4, 6, rng=rng, dtype=np.float64),
        nbbn.BatchNorm(6, activation="relu", dtype=np.float64, **options),
        nbbn.Dropout(0.5, rng=1),
        nbbn.Dense(6, 3, rng=rng, dtype=np.float64),
        nbbn.BatchNorm(3, dtype=np.float64, **options),
    )


@pytest.mark.parametrize(
    ("convention", "rows", "parts"),
    [("torch", 50, [7, 30, 48]), ("keras", 50, [7, 30, 48]), ("torch", 400, 200)],
    ids=["torch", "keras", "more batches than are kept at a time"],
)
def test_recalibration_is_exact(convention, rows, parts, rng):
    """Of the first layer, whose input does not depend on batches, over batches of any sizes."""
    model = network(0, convention=Convention.of(convention, axis=1))
    x = rng.normal(size=(rows, 4)) + 3 * (rows > 50)
    batches = np.split(x, parts)
    model.training = False
    nbbn.recalibrate(model, batches if rows > 50 else ((part, "label") for part in batches))
    want = model[0](x).data
    correction = rows / (rows - 1) if convention == "torch" else 1
    assert_close(model[1].running_mean, want.mean(axis=0))
    assert_close(model[1].running_var, want.var(axis=0) * correction)
    assert model[1].num_batches_tracked == 0
    assert not model.training
    assert model[1].training
    assert model[2].training


def test_recalibration_over_one_batch_makes_evaluation_equal_training(rng):
    model = network(0, convention=Convention.of("keras", axis=1))
    x = rng.normal(size=(30, 4))
    nbbn.recalibrate(model, [x])
    model[2].eval()
    trained = model(x).data
    nbbn.recalibrate(model, [x])
    assert_close(model.eval()(x).data, trained)


def test_recalibration_leaves_frozen_layers_alone(rng):
    model = network(0)
    model[1].frozen = True
    nbbn.recalibrate(model, [rng.normal(size=(30, 4))])
    np.testing.assert_array_equal(model[1].running_mean, np.zeros(6))
    assert not np.array_equal(model[4].running_mean, np.zeros(3))


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], ArgumentError, "no data"),
        ([np.zeros((0, 4))], ArgumentError, "no data"),
        ([np.ones((8, 4)), np.ones((8, 5))], ShapeError, "5"),
        ([np.ones((8, 4)), [[1.0]]], NbbnError, "list"),
        ([()], NbbnError, "tuple"),
        ([np.ones((8, 4)), np.full((8, 4), np.nan)], ArgumentError, "not finite"),
        (None, DTypeError, "list of arrays or of pairs, got NoneType"),
    ],
)
def test_a_failed_recalibration_changes_nothing(batches, error, words):
    model = network(0)
    before = state_of(model)
    with pytest.raises(error, match=words):
        nbbn.recalibrate(model, batches)
    assert state_of(model) == before
    assert all(module.training for module in model.modules())
    assert model[1]._observed is None


def test_a_recalibration_beyond_the_range_of_its_statistics_changes_nothing(rng):
    """Float64 inputs of a layer with float32 statistics."""
    model = nbbn.Sequential(nbbn.BatchNorm(2, dtype=np.float32), nbbn.BatchNorm(2))
    before = state_of(model)
    x = rng.normal(size=(6, 2))
    x[:, 1] *= 1e22
    with pytest.raises(ArgumentError, match="not finite in float32"):
        nbbn.recalibrate(model, [x.astype(np.float32)])
    assert state_of(model) == before


# ------------------------------------------------------------------------------ refusals


ROWS, ONES, THREE = np.ones((4, 3)), np.ones(4), np.ones(3)
STATS = F.batch_norm_train(np.arange(12.0).reshape(4, 3))[1]
ONE = F.weighted_batch_norm_train(ROWS, np.arange(4) == 1, single=True)[1]
WEIGHTED = F.weighted_batch_norm_train(ROWS, ONES)[1]


def stats(mean, var, count=2):
    return F.BatchNormStats(mean, var, mean, count)


REFUSED = [
    ("nbbn.Sequential(Block())(ROWS, weights=ONES)",
     ArgumentError, "weights do not reach.*Block"),
    ("F.weighted_batch_norm_backward(ROWS, ROWS, ONES, STATS)",
     DTypeError, "WeightedStats.*BatchNormStats"),
    ("F.update_running_stats(np.zeros(3), THREE, ONE)", ArgumentError, "unbiased variance"),
    ("F.weighted_batch_norm_backward(ROWS[:, :2], ROWS[:, :2], ONES, WEIGHTED)",
     ShapeError, r"stats.mean must have shape \(2,\)"),
    ("F.merge_stats([])", ArgumentError, "at least one"),
    ("F.merge_stats([THREE])", DTypeError, "ndarray"),
    ("F.merge_stats([stats(np.ones(2), np.ones(2)), stats(THREE, THREE)])", ShapeError, "2 and 3"),
    ("F.merge_stats([stats(THREE, np.ones(1))])", ShapeError, r"stats.var.*\(1,"),
    ("F.merge_stats([stats([1.0], np.ones(1))])", DTypeError, "stats.mean.*list"),
    ("F.merge_stats([stats(THREE, THREE, -1)])", ArgumentError, "count.*-1"),
    ("F.merge_stats(None)", DTypeError, "list of BatchNormStats, got NoneType"),
    ("nbbn.BatchRenorm(3, r_max=0.5)", NbbnError, "r_max.*1.*0.5"),
    ("nbbn.BatchRenorm(3, d_max=-1)", NbbnError, "d_max.*0.*-1"),
    ("nbbn.BatchRenorm(3, track_running_stats=False)", NbbnError, "track"),
    ("nbbn.BatchRenorm(3, r_max=lambda k: 0.1)(ROWS)", NbbnError, "r_max.*0.1.*0 batch"),
    ("nbbn.Ramp(1, 2, 5, 5)", NbbnError, "first < last.*5 and 5"),
    ("nbbn.GhostBatchNorm(3, 0)", NbbnError, "size.*0"),
    ("nbbn.GhostBatchNorm(3, 2)(ROWS, weights=ONES)", NbbnError, "no weights"),
    ("nbbn.InPlaceBatchNorm(3, slope=0)", NbbnError, "slope.*0"),
    ('nbbn.InPlaceBatchNorm(3, activation="relu")', NbbnError, "leaky"),
    ('nbbn.InPlaceBatchNorm(3, convention=Convention(on_single="skip"))',
     NbbnError, "skip.*activation"),
    ("nbbn.InPlaceBatchNorm(3)(ROWS, ROWS)", NbbnError, "residual"),
    ("nbbn.InPlaceBatchNorm(3)(ROWS, weights=ONES)", NbbnError, "no weights"),
    ("nbbn.BatchRenorm(3)(ROWS, weights=ONES)", NbbnError, "no weights"),
    ("nbbn.recalibrate(nbbn.Dense(2, 2), [np.ones((2, 2), np.float32)])",
     ArgumentError, "no BatchNorm"),
    ("nbbn.recalibrate(nbbn.BatchNorm(3, frozen=True), [ROWS])", ArgumentError, "no BatchNorm"),
    ("nbbn.recalibrate([], [])", DTypeError, "Module.*list"),
]  # fmt: skip


test_wrong_use_is_refused = refusing(REFUSED, globals())


def test_weights_pass_layers_that_know_of_none():
    nbbn.Sequential(nbbn.Dense(3, 3), nbbn.BatchNorm(3))(ROWS.astype(np.float32), weights=ONES)
