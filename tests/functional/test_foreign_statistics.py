"""Running statistics that no training gives are refused at every door, before anything changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

import nbbn
from nbbn import checkpoint, convert
from nbbn.errors import ArgumentError, CheckpointError, NbbnError


def net():
    return nbbn.mlp((4, 3, 2), rng=0)


def through_load_state_dict(model, spoil, folder):
    state = net().state_dict()
    spoil(state)
    model.load_state_dict(state)


def through_restore(model, spoil, folder):
    other = net()
    spoil(dict(other._state()))
    checkpoint.save(folder / "spoiled", other)
    checkpoint.restore(checkpoint.load(folder / "spoiled"), model)


def through_load_torch(model, spoil, folder):
    state = convert.to_torch(net())
    spoil(state)
    convert.load_torch(model, state)


def through_load_keras(model, spoil, folder):
    other = net()
    spoil(dict(other._state()))
    convert.load_keras(model, convert.to_keras(other))


def through_a_state(model, spoil, folder):
    other = net()
    spoil(dict(other._state()))
    convert.BatchNormState.of(other[1]).assign(model[1])


def through_onnx(model, spoil, folder):
    onnx = pytest.importorskip("onnx")
    nbbn.onnx.export(net().eval(), folder / "net.onnx")
    proto = onnx.load(folder / "net.onnx")
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    state = {name: array.copy() for name, array in arrays.items()}
    spoil(state)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(state[tensor.name], tensor.name))
    nbbn.onnx.load(proto)


DOORS = (
    through_load_state_dict,
    through_restore,
    through_load_torch,
    through_load_keras,
    through_a_state,
    through_onnx,
)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("running_var", -0.5, "at least 0, got -0.5 for channel 1"),
        ("running_var", math.nan, "at least 0, got nan for channel 1"),
        ("running_var", math.inf, "finite in float32 and at least 0, got inf for channel 1"),
        ("running_mean", math.nan, "finite in float32, got nan for channel 1"),
        ("running_mean", -math.inf, "finite in float32, got -inf for channel 1"),
    ],
)
def test_statistics_that_no_training_gives_change_nothing(door, name, value, reason, tmp_path):
    def spoil(state):
        (found,) = [array for key, array in state.items() if key.endswith(name)]
        found[1] = value

    model = net()
    before = {key: array.tobytes() for key, array in model.state_dict().items()}
    with pytest.raises(NbbnError, match=reason) as caught:
        door(model, spoil, tmp_path)
    assert isinstance(caught.value, ArgumentError | CheckpointError)
    assert name in str(caught.value).replace("running ", "running_")
    assert {key: array.tobytes() for key, array in model.state_dict().items()} == before


@pytest.mark.parametrize("door", DOORS)
def test_statistics_at_the_edge_of_what_training_gives_are_taken(door, tmp_path):
    def spoil(state):
        for key, array in state.items():
            if key.endswith("running_var"):
                array[:] = 0, 1e-40, np.finfo(np.float32).max

    door(net(), spoil, tmp_path)


def test_a_variance_beyond_the_layers_type_is_refused():
    state = {key: array.astype(np.float64) for key, array in net().state_dict().items()}
    state["1.running_var"][2] = 1e39
    with pytest.raises(ArgumentError, match=r"1.running_var must be finite in float32.*1e\+39"):
        net().load_state_dict(state)
    nbbn.mlp((4, 3, 2), rng=0, dtype=np.float64).load_state_dict(state)


@pytest.mark.parametrize("count", [-1, 2.5, math.nan, math.inf, 2.0**63])
def test_a_count_of_batches_is_a_whole_number(count):
    state = net().state_dict() | {"1.num_batches_tracked": np.array(count)}
    with pytest.raises(ArgumentError, match=r"1.num_batches_tracked must be a whole number"):
        net().load_state_dict(state)


def test_pytorchs_count_of_batches_is_not_negative():
    state = convert.to_torch(net()) | {"1.num_batches_tracked": np.array(-1)}
    with pytest.raises(
        ArgumentError, match=r"num_batches_tracked of PyTorch's '1' must be a whole"
    ):
        convert.load_torch(net(), state)
