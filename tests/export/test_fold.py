"""Batch normalization folded into Dense layers: same outputs, no BatchNorm, or a reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbbn
from nbbn import (
    BatchNorm,
    Conv2d,
    Convention,
    ConvTranspose2d,
    Dense,
    Dropout,
    Flatten,
    ReLU,
    Sequential,
    Sigmoid,
    Tanh,
)
from nbbn.errors import ArgumentError, DTypeError
from nbbn.export import fold as folding
from nbbn.nn.variants import BatchRenorm, GhostBatchNorm, InPlaceBatchNorm
from tests.helpers.layers import settled, state_of

WIDE = {"dtype": np.float64}


def norms(model: nbbn.Module) -> int:
    return sum(isinstance(layer, BatchNorm) for layer in model.modules())


def dense(a, b, **options) -> Dense:
    return Dense(a, b, rng=a * 7 + b, **WIDE, **options)


def conv(*sizes, kind=Conv2d, **options) -> nbbn.Module:
    return kind(*sizes, rng=sum(sizes), **WIDE, **options)


LAST = Convention(axis=-1)


def norm(channels, **options) -> BatchNorm:
    return BatchNorm(channels, **WIDE, **options)


# Model, shape of its input, and how many layers it folds to.
FOLDABLE = {
    "behind": ((dense(5, 4), norm(4)), (7, 5), 1),
    "behind, no bias": ((dense(5, 4, bias=False), norm(4)), (7, 5), 1),
    "behind, with relu": ((dense(5, 4), norm(4, activation="relu"), dense(4, 3)), (7, 5), 3),
    "behind, relu after": ((dense(5, 4), norm(4), ReLU(), dense(4, 3)), (7, 5), 3),
    "behind, not affine": ((dense(5, 4), norm(4, scale=False, shift=False), Tanh()), (7, 5), 2),
    "behind, scale only": ((dense(5, 4), norm(4, shift=False)), (7, 5), 1),
    "behind, shift only": ((dense(5, 4), norm(4, scale=False)), (7, 5), 1),
    "behind, keras": ((dense(5, 4), norm(4, convention="keras"), Sigmoid()), (7, 5), 2),
    "behind, across dropout": ((dense(5, 4), Dropout(0.5, rng=0), norm(4)), (7, 5), 1),
    "behind, twice": ((dense(5, 4), norm(4), norm(4)), (7, 5), 1),
    "behind, ghost": ((dense(5, 4), GhostBatchNorm(4, 8, **WIDE)), (7, 5), 1),
    "in front, renorm": ((BatchRenorm(5, **WIDE), dense(5, 4)), (7, 5), 1),
    "in front": ((norm(5), dense(5, 4)), (7, 5), 1),
    "in front, no bias": ((norm(5), dense(5, 4, bias=False)), (7, 5), 1),
    "in front, twice": ((norm(5), norm(5), dense(5, 4)), (7, 5), 1),
    "in front, across dropout": ((norm(5), Dropout(0.2, rng=0), dense(5, 4)), (7, 5), 1),
    "in front, after relu": ((dense(5, 4), ReLU(), norm(4), dense(4, 3)), (7, 5), 3),
    "both sides": ((norm(5), dense(5, 4), norm(4)), (7, 5), 1),
    "both sides, with relu": ((norm(5), dense(5, 4), norm(4, activation="relu")), (7, 5), 2),
    "planes": ((norm(3), Flatten(), dense(12, 4)), (7, 3, 2, 2), 2),
    "planes, channels last": ((norm(3, convention=Convention(axis=-1)), Flatten(), dense(12, 4)),
                              (7, 2, 2, 3), 2),
    "planes, both sides": ((norm(3), Flatten(), dense(12, 4), norm(4), dense(4, 2)), (7, 3, 4), 3),
    "nested": ((Sequential(dense(5, 4), norm(4)), ReLU(), Sequential(norm(4), dense(4, 3))), (7, 5),
               3),
    "nothing to fold": ((dense(5, 4), ReLU(), dense(4, 3)), (7, 5), 3),
}  # fmt: skip


# The same of images, which do not follow from the first layer.
FOLDABLE_IMAGES = {
    "behind": ((conv(3, 4, 3, padding=1), norm(4)), (5, 3, 6, 7), 1),
    "behind, no bias, relu": ((conv(3, 4, 2, bias=False), norm(4, activation="relu"),
                               conv(4, 2, 3), norm(2)), (5, 3, 6, 7), 2),
    "behind, relu after": ((conv(3, 4, 2), norm(4), Dropout(0.5, rng=0), ReLU(), conv(4, 2, 3)),
                           (5, 3, 6, 7), 2),
    "relu between": ((conv(3, 4, 2), ReLU(), norm(4), Flatten(), dense(16, 2)), (5, 3, 3, 3), 3),
    "transposed, relu": ((conv(3, 4, 2, kind=ConvTranspose2d), norm(4, activation="relu")),
                         (5, 3, 3, 3), 2),
    "behind, groups": ((conv(4, 6, 3, groups=2), norm(6)), (5, 4, 6, 7), 1),
    "behind, depthwise": ((conv(4, 4, 3, groups=4), norm(4), ReLU(), conv(4, 6, 1), norm(6)),
                          (5, 4, 6, 7), 2),
    "behind, channels last": ((conv(3, 4, 3, axis=-1), norm(4, convention=LAST)), (5, 6, 7, 3), 1),
    "behind, transposed": ((conv(3, 4, 3, kind=ConvTranspose2d, stride=2), norm(4)), (5, 3, 4, 4),
                           1),
    "behind, transposed, groups": ((conv(6, 4, 3, kind=ConvTranspose2d, groups=2), norm(4)),
                                   (5, 6, 4, 4), 1),
    "into both": ((conv(3, 4, 3), norm(4), norm(4), Flatten(), dense(16, 2)), (5, 3, 4, 4), 3),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDABLE_IMAGES)
def test_a_folded_model_of_images_computes_the_same(name, rng):
    layers, shape, count = FOLDABLE_IMAGES[name]
    model = settled(Sequential(*layers), rng)
    before = state_of(model)
    x = 3 * rng.normal(size=shape) + 1
    folded = nbbn.fold(model, x)
    assert len(folded) == count
    assert norms(folded) == 0
    np.testing.assert_allclose(folded(x).data, model.eval()(x).data, rtol=1e-10, atol=1e-11)
    assert before == state_of(model)
    kept = repr(folded[0]).replace(", activation='relu'", "")
    assert kept == repr(layers[0]).replace(", bias=False", "")


def test_images_are_not_guessed_and_axes_not_mixed():
    with pytest.raises(ArgumentError, match="pass a batch x"):
        nbbn.fold(Sequential(conv(3, 4, 3), norm(4)))
    model = Sequential(conv(3, 4, 3, axis=-1), norm(4))
    with pytest.raises(ArgumentError, match=r"its axis is 1, and that of Conv2d.* -1"):
        nbbn.fold(model, np.ones((2, 6, 6, 3)))
    with pytest.raises(ArgumentError, match="between the input and Conv2d"):
        nbbn.fold(Sequential(norm(3), conv(3, 4, 3)), np.ones((2, 3, 6, 6)))


@pytest.mark.parametrize("name", FOLDABLE)
def test_a_folded_model_computes_the_same(name, rng):
    layers, shape, count = FOLDABLE[name]
    model = settled(Sequential(*layers), rng)
    before = state_of(model)
    folded = nbbn.fold(model)
    assert len(folded) == count
    assert norms(folded) == 0
    x = 3 * rng.normal(size=shape) + 1
    expected = model.eval()(x).data
    np.testing.assert_allclose(folded(x).data, expected, rtol=1e-11, atol=1e-12)
    assert not folded.training
    assert before == state_of(model)


def test_the_model_stays_in_its_mode_and_shares_no_memory(rng):
    model = settled(nbbn.mlp((6, 5, 4, 3), rng=0), rng)
    folded = nbbn.fold(model, rng.normal(size=(9, 6)).astype(np.float32))
    assert all(module.training for module in model.modules())
    for ours in model.parameters():
        assert not any(np.may_share_memory(ours.data, p.data) for p in folded.parameters())
    assert {p.dtype for p in folded.parameters()} == {np.dtype(np.float32)}
    assert repr(folded).count("Dense") == 3
    assert folded.training is False


def test_the_shape_of_planes_follows_from_the_dense_behind_them(rng):
    """Also where the first BatchNorm stays."""
    first = norm(3, activation="relu")
    model = settled(Sequential(first, Flatten(), dense(12, 4), norm(4)), rng)
    assert norms(nbbn.fold(model, strict=False)) == 1
    with pytest.raises(ArgumentError, match="its relu comes before"):
        nbbn.fold(model)


def test_where_nothing_folds_nothing_needs_a_batch():
    assert len(nbbn.fold(Sequential(ReLU(), Dropout(0.1)))) == 1


def test_a_layer_alone_is_a_model_too(rng):
    layer = settled(dense(4, 3), rng)
    np.testing.assert_array_equal(nbbn.fold(layer)(np.eye(4)).data, layer(np.eye(4)).data)


class Residual(nbbn.Module):
    def __init__(self, width):
        self.norm = norm(width)

    def forward(self, x):
        return x + self.norm(x)


KINDS = {
    "dense": lambda width, wide, **o: (Dense(width, wide, rng=wide, **WIDE, **o), wide),
    "bare": lambda width, wide: KINDS["dense"](width, wide, bias=False),
    "norm": lambda width, wide, **o: (norm(width, **o), width),
    "relu norm": lambda width, wide: KINDS["norm"](width, wide, activation="relu"),
    "scale": lambda width, wide: KINDS["norm"](width, wide, shift=False),
    "keras": lambda width, wide: KINDS["norm"](width, wide, convention="keras"),
    "relu": lambda width, wide: (ReLU(), width),
    "flatten": lambda width, wide: (Flatten(), width),
    "dropout": lambda width, wide: (Dropout(0.3, rng=0), width),
}


@given(
    st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 5)), min_size=1, max_size=8)
)
@settings(max_examples=60)
def test_any_stack_of_layers_computes_the_same(plan):
    """What folds is gone, what does not stays, and either way nothing changes."""
    rng = np.random.default_rng(0)
    layers, width = [], 3
    for kind, wide in plan:
        layer, width = KINDS[kind](width, wide)
        layers.append(layer)
    model = settled(Sequential(*layers), rng)
    x = rng.normal(size=(6, 3))
    folded = nbbn.fold(model, x, strict=False)
    np.testing.assert_allclose(folded(x).data, model.eval()(x).data, rtol=1e-9, atol=1e-10)
    if norms(folded):
        with pytest.raises(ArgumentError, match="cannot fold"):
            nbbn.fold(model, x)


REFUSED = {
    r"'0', BatchNorm\(5\): it is between the input and ReLU\(\)": (norm(5), ReLU()),
    r"'1', BatchNorm\(4\): it is between ReLU\(\) and the output": (ReLU(), norm(4)),
    r"it follows the input, and its relu comes before Dense": (norm(5, activation="relu"),
                                                               dense(5, 4)),
    "it keeps no running statistics": (dense(5, 4), norm(4, track_running_stats=False)),
    "its leaky ReLU has no layer": (dense(5, 4), InPlaceBatchNorm(4, **WIDE)),
    "it normalizes axis 2": (norm(5, convention=Convention(axis=2)), Flatten(), dense(10, 4)),
    "'1': the forward of Residual says how its BatchNorm is used": (dense(5, 4), Residual(4)),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_folded_is_refused_with_the_reason(message, rng):
    model = settled(Sequential(*REFUSED[message]), rng)
    with pytest.raises(ArgumentError, match=message):
        nbbn.fold(model)


def test_without_strict_the_rest_is_folded(rng):
    model = settled(
        Sequential(dense(5, 4), norm(4), Residual(4), dense(4, 4), ReLU(), norm(4)), rng
    )
    folded = nbbn.fold(model, strict=False)
    assert norms(folded) == 2
    assert len(folded) == 5
    x = rng.normal(size=(6, 5))
    np.testing.assert_allclose(folded(x).data, model.eval()(x).data, rtol=1e-11)


def test_statistics_that_are_not_numbers_are_refused():
    model = Sequential(dense(5, 4), norm(4))
    model[1].running_var[2] = np.nan
    with pytest.raises(ArgumentError, match="statistics or parameters are not finite"):
        nbbn.fold(model)


def test_float32_that_cannot_carry_the_mean_is_refused(rng):
    """z - mean loses nothing where z is near the mean; W x + (b - mean) does."""
    model = Sequential(Dense(5, 4, rng=0), BatchNorm(4))
    model[0].bias.data[...] = model[1].running_mean[...] = 1e6
    x = rng.normal(size=(64, 5)).astype(np.float32)
    nbbn.fold(model, x, tolerance=0.1)
    with pytest.raises(ArgumentError, match=r"folding 0 and 1 would change its output by .*e-0"):
        nbbn.fold(model, x)


@pytest.mark.parametrize("broken", ["_behind", "_ahead"])
def test_a_wrong_result_never_returns(broken, rng, monkeypatch):
    """The verification is what stands between a mistake here and a user's model."""
    model = settled(Sequential(norm(5), dense(5, 4), ReLU(), dense(4, 3), norm(3)), rng)
    right = getattr(folding, broken)

    def wrong(*arguments):
        folded = right(*arguments)
        folded.bias.data[0] += 1e-9
        return folded

    monkeypatch.setattr(folding, broken, wrong)
    with pytest.raises(ArgumentError, match=r"would change its output by .*1e-12 is allowed"):
        nbbn.fold(model)


def test_a_model_that_says_nothing_of_its_input_needs_a_batch(rng):
    class Split(nbbn.Module):
        def forward(self, x):
            return x.reshape(-1, 5)

    model = settled(Sequential(Split(), dense(5, 4), norm(4)), rng)
    with pytest.raises(ArgumentError, match="pass a batch x to verify on"):
        nbbn.fold(model)
    folded = nbbn.fold(model, rng.normal(size=(3, 10)))
    assert norms(folded) == 0


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3,), {}, DTypeError, "model must be a Module, got int"),
        ((Sequential(dense(5, 4), norm(4)), [1.0]), {}, ArgumentError,
         "x must be a Tensor or a numpy"),
        ((Sequential(dense(5, 4), norm(4)), np.ones((0, 5))), {}, ArgumentError,
         "x has no elements"),
        ((Sequential(dense(5, 4), norm(4)), np.ones((3, 6))), {}, ArgumentError,
         r"'0 and 1' does not take .*6\)"),
        ((Sequential(dense(5, 4)),), {"tolerance": 0}, ArgumentError, "tolerance must be above 0"),
    ],
)  # fmt: skip
def test_arguments_that_make_no_sense(arguments, options, error, message):
    with pytest.raises(error, match=message):
        nbbn.fold(*arguments, **options)
