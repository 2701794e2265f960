"""The layers of layer, RMS, group and instance normalization, beside PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn.errors import ArgumentError, DTypeError, ShapeError
from tests.helpers.layers import assert_all_close, assert_close, run, settled
from tests.helpers.refusals import refusing

W = {"dtype": np.float64}


def torch_pairs(torch):
    """Layers of nbbn and of PyTorch that are the same, with shapes of inputs."""
    nn, wide = torch.nn, {"dtype": torch.float64}
    return [
        (nbbn.LayerNorm(6, **W), nn.LayerNorm(6, **wide), [(5, 6), (6,), (2, 3, 6)]),
        (nbbn.LayerNorm((3, 6), eps=0.1, **W), nn.LayerNorm((3, 6), eps=0.1, **wide), [(2, 3, 6)]),
        (nbbn.LayerNorm(6, shift=False, **W), nn.LayerNorm(6, bias=False, **wide), [(5, 6)]),
        (
            nbbn.LayerNorm(6, scale=False, shift=False, **W),
            nn.LayerNorm(6, elementwise_affine=False, **wide),
            [(5, 6)],
        ),
        (nbbn.RMSNorm(6, **W), nn.RMSNorm(6, **wide), [(5, 6), (2, 3, 6)]),
        (
            nbbn.RMSNorm((3, 6), eps=1e-3, scale=False, **W),
            nn.RMSNorm((3, 6), eps=1e-3, elementwise_affine=False, **wide),
            [(2, 3, 6)],
        ),
        (nbbn.GroupNorm(2, 6, **W), nn.GroupNorm(2, 6, **wide), [(5, 6), (2, 6, 4), (2, 6, 3, 4)]),
        (
            nbbn.GroupNorm(3, 6, scale=False, shift=False, eps=0.1, **W),
            nn.GroupNorm(3, 6, affine=False, eps=0.1, **wide),
            [(2, 6, 3, 4)],
        ),
        (nbbn.InstanceNorm(6, **W), nn.InstanceNorm2d(6, **wide), [(2, 6, 3, 4)]),
        (
            nbbn.InstanceNorm(6, scale=True, shift=True, **W),
            nn.InstanceNorm1d(6, affine=True, **wide),
            [(2, 6, 4)],
        ),
        (
            nbbn.InstanceNorm(
                6, scale=True, shift=True, track_running_stats=True, momentum=0.3, **W
            ),
            nn.InstanceNorm3d(6, affine=True, track_running_stats=True, momentum=0.3, **wide),
            [(2, 6, 3, 4, 2), (3, 6, 1, 2, 2)],
        ),
    ]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("which", range(11))
def test_a_layer_does_what_torch_does(which, training, rng):
    torch = pytest.importorskip("torch")
    layer, other, shapes = torch_pairs(torch)[which]
    settled(layer, rng)
    other.load_state_dict({k: torch.tensor(v) for k, v in layer.state_dict().items()})
    layer.train(training)
    other.train(training)
    for shape in shapes:
        x = rng.normal(2, 3, size=shape)
        y, dx, gradients = run(layer, x)
        leaf = torch.tensor(x, requires_grad=True)
        other.zero_grad()
        expected = other(leaf)
        expected.backward(torch.cos(leaf.detach()))
        assert_close(y, expected.detach().numpy())
        assert_close(dx, leaf.grad.numpy())
        assert_all_close(gradients, [p.grad.numpy() for p in other.parameters()])
    state = {name: array.numpy() for name, array in other.state_dict().items()}
    state.pop("num_batches_tracked", None)
    assert state.keys() == layer.state_dict().keys()
    assert_all_close(layer.state_dict().values(), state.values())


def test_an_empty_batch_leaves_running_statistics_alone():
    layer = nbbn.InstanceNorm(3, track_running_stats=True)
    assert layer(np.empty((0, 3, 4), np.float32)).shape == (0, 3, 4)
    assert not layer.running_mean.any()
    assert (layer.running_var == 1).all()


def test_it_says_what_it_is():
    assert repr(nbbn.LayerNorm(4)) == "LayerNorm(4)"
    assert repr(nbbn.LayerNorm([3, 4])) == "LayerNorm((3, 4))"
    assert repr(nbbn.RMSNorm(4)) == "RMSNorm(4)"
    assert repr(nbbn.GroupNorm(2, 4)) == "GroupNorm(2, 4)"
    tracking = nbbn.InstanceNorm(4, track_running_stats=True)
    assert repr(tracking) == "InstanceNorm(4, track_running_stats=True)"


X = np.ones((2, 6, 3), np.float32)
test_refusals = refusing(
    [
        ("nbbn.LayerNorm(())", ArgumentError, "shape.*one axis"),
        ("nbbn.LayerNorm(0)", ArgumentError, "shape.*1.*0"),
        ("nbbn.LayerNorm('ab')", DTypeError, "shape.*str"),
        ("nbbn.LayerNorm(4, eps=0)", ArgumentError, "eps.*0"),
        ("nbbn.LayerNorm(4)(X)", ShapeError, r"\(4,\).*\(2, 6, 3\)"),
        ("nbbn.RMSNorm((6, 4))(X)", ShapeError, r"\(6, 4\).*\(2, 6, 3\)"),
        ("nbbn.RMSNorm((2, 2, 6, 3))(X)", ShapeError, r"\(2, 2, 6, 3\).*\(2, 6, 3\)"),
        ("nbbn.RMSNorm(4, eps=-1)", ArgumentError, "eps.*-1"),
        ("nbbn.GroupNorm(4, 6)", ArgumentError, "6 channels.*4 groups"),
        ("nbbn.GroupNorm(0, 6)", ArgumentError, "groups.*1.*0"),
        ("nbbn.GroupNorm(2, 4)(X)", ShapeError, r"4 channels.*\(2, 6, 3\)"),
        ("nbbn.GroupNorm(2, 4)(X[0, 0])", ShapeError, r"4 channels.*\(3,\)"),
        ("nbbn.InstanceNorm(4)(X)", ShapeError, r"4 channels.*\(2, 6, 3\)"),
        ("nbbn.InstanceNorm(6)(X[..., :1])", ShapeError, r"1 position.*\(2, 6, 1\)"),
        ("nbbn.InstanceNorm(6)(X[..., 0])", ShapeError, r"3 dimensions.*\(2, 6\)"),
        ("nbbn.InstanceNorm(6, track_running_stats=True).eval()(X[..., 0])", ShapeError,
         r"3 dimensions.*\(2, 6\)"),
        ("nbbn.InstanceNorm(6, momentum=2)", ArgumentError, "momentum.*2"),
    ],
    {"nbbn": nbbn, "X": X},
)  # fmt: skip
