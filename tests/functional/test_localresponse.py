"""Local response normalization: memory, types, threads, empty batches; the layer."""

from __future__ import annotations

import numpy as np
import pytest

import nbbn
import nbbn.functional as F  # noqa: N812 - the usual name
from nbbn.errors import ShapeError
from nbbn.kernels import localresponse_cpu
from tests.helpers import reference
from tests.helpers.refusals import refusing

OPTIONS = [{"size": 5, "alpha": 0.5}, {"size": 3, "alpha": 2, "over": "positions", "beta": 0.6}]
every_option = pytest.mark.parametrize("options", OPTIONS)


@every_option
def test_any_number_of_threads_and_blocks_gives_the_same_bits(rng, options, monkeypatch):
    x, dy = rng.normal(size=(2, 3, 8, 40, 41)).astype(np.float32)

    def everything(threads, block):
        monkeypatch.setattr(localresponse_cpu, "workers", lambda work: threads)
        monkeypatch.setattr(localresponse_cpu, "BLOCK", block)
        return F.local_response_norm(x, **options), F.local_response_norm_backward(dy, x, **options)

    expected = everything(1, 10**6)
    np.testing.assert_allclose(
        expected[0], reference.local_response_norm(x, **options), rtol=1e-6, atol=1e-6
    )
    for threads, block in ((2, 4096), (3, 1000), (7, 77)):
        for one, other in zip(expected, everything(threads, block), strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_layer_does_what_torch_does(rng):
    torch = pytest.importorskip("torch")
    x = rng.normal(size=(2, 7, 3, 4))
    for size, alpha, beta, k in ((5, 1e-4, 0.75, 1.0), (4, 0.3, 0.5, 2.0)):
        layer = nbbn.LocalResponseNorm(size, alpha=alpha, beta=beta, k=k)
        want = torch.nn.LocalResponseNorm(size, alpha, beta, k)(torch.tensor(x)).numpy()
        np.testing.assert_allclose(layer(x).data, want, rtol=1e-12)
        # AlexNet's alpha is of the sum: as much as a size-th of PyTorch's.
        layer = nbbn.LocalResponseNorm(size, alpha=alpha / size, beta=beta, k=k, alpha_of="sum")
        np.testing.assert_allclose(layer(x).data, want, rtol=1e-12)
    assert repr(layer) == "LocalResponseNorm(4)"


X = np.ones((2, 6, 3), np.float32)
test_refusals = refusing(
    [
        ("F.local_response_norm(X[0], size=3)", ShapeError, r"3 dimensions.*\(6, 3\)"),
        ("F.local_response_norm(X[:, :0], size=3)", ShapeError, r"no channels.*\(2, 0, 3\)"),
    ],
    {"F": F, "X": X, "np": np},
)
