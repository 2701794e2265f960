"""Models on the device: converted, folded, exported and inspected like those on the host."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
from nbbn import backend, convert


def settled(rng) -> nbbn.Sequential:
    model = nbbn.mlp((4, 3, 2), rng=1)
    for _ in range(3):
        model(rng.normal(1, 2, size=(8, 4)).astype(np.float32))
    return model


def test_weights_go_out_and_in(rng):
    here, there = settled(rng), nbbn.mlp((4, 3, 2), rng=2).to("cuda")
    convert.load_torch(there, convert.to_torch(here))
    assert {p.device for p in there.parameters()} == {"cuda"}
    for name, array in convert.to_torch(there).items():
        np.testing.assert_array_equal(array, convert.to_torch(here)[name])
    convert.load_keras(there, convert.to_keras(here), eps=1e-5, momentum=0.9)
    for got, want in zip(convert.to_keras(there), convert.to_keras(here), strict=True):
        np.testing.assert_array_equal(got, want)
    state = convert.BatchNormState.of(there[1])
    assert isinstance(state.mean, np.ndarray)
    assert backend.device_of(there[1].running_mean) == "cuda"


def test_folding_and_export_return_to_the_host(rng):
    here = settled(rng)
    there = settled(np.random.default_rng(0))
    convert.load_torch(there, convert.to_torch(here))
    there.to("cuda")
    folded = nbbn.fold(there)
    assert {p.device for p in folded.parameters()} == {"cpu"}
    assert {p.device for p in there.parameters()} == {"cuda"}
    x = rng.normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_allclose(folded(x).data, here.eval()(x).data, rtol=1e-5, atol=1e-6)
    pytest.importorskip("onnxruntime")
    exported = nbbn.onnx.load(nbbn.onnx.export(there))
    np.testing.assert_allclose(exported(x).data, here(x).data, rtol=1e-5, atol=1e-6)


def test_inspect_sees_what_it_sees_on_the_host(rng):
    model = settled(rng)
    x, y = rng.normal(1, 2, size=(8, 4)).astype(np.float32), rng.integers(0, 2, 8)
    expected = nbbn.inspect(model, x, y, warn=False)
    model.to("cuda")
    found = nbbn.inspect(model, *(backend.to(a, "cuda") for a in (x, y)), warn=False)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    for got, want in zip(found.layers, expected.layers, strict=True):
        assert got[:2] == want[:2]
        for a, b in zip(got[2:], want[2:], strict=True):
            assert a == (None if b is None else pytest.approx(b, rel=1e-4, abs=1e-6))
