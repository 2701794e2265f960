"""Batch normalization against PyTorch's: buffers, odd batches, accuracy.

Values and gradients are compared in `autograd/test_ops.py`.
"""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as fn
from tests.helpers import reference

torch = pytest.importorskip("torch")
batch_norm = torch.nn.functional.batch_norm

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
DTYPES = list(TOLERANCE)
SHAPES = [
    (64, 100), (5, 7), (300, 1), (8, 5, 11), (1, 6, 9), (4, 16, 9, 9), (2, 3, 4, 5, 6), (1024, 100),
]  # fmt: skip


class Peers:
    """One set of inputs, as NumPy arrays and as PyTorch tensors that want gradients."""

    def __init__(self, rng, shape, dtype, affine=True):
        channels = shape[1]
        self.x = (rng.normal(size=shape) * 1.5 + 0.7).astype(dtype)
        self.dy = rng.normal(size=shape).astype(dtype)
        self.gamma = rng.uniform(0.5, 1.5, channels).astype(dtype) if affine else None
        self.beta = rng.normal(size=channels).astype(dtype) if affine else None
        self.mean = rng.normal(size=channels).astype(dtype)
        self.var = rng.uniform(0.5, 2, channels).astype(dtype)
        self.tensors = [
            None if array is None else torch.tensor(array, requires_grad=True)
            for array in (self.x, self.gamma, self.beta)
        ]
        self.buffers = [torch.tensor(self.mean), torch.tensor(self.var)]

    def torch(self, **options):
        """Train forward and backward in PyTorch; return y and the gradients it knows."""
        x, gamma, beta = self.tensors
        y = batch_norm(x, *self.buffers, gamma, beta, True, **options)
        y.backward(torch.tensor(self.dy))
        gradients = [None if t is None else t.grad.numpy() for t in self.tensors]
        return y.detach().numpy(), gradients


def assert_agree(got, want, dtype):
    """Check the largest difference against the largest entry."""
    assert got.dtype == dtype
    assert got.shape == want.shape
    scale = max(np.max(np.abs(want), initial=0), 1e-3)
    assert np.max(np.abs(got - want), initial=0) < TOLERANCE[dtype] * scale


def assert_all_agree(got, want, dtype):
    for array, truth in zip(got, want, strict=True):
        if truth is not None:
            assert_agree(array, truth, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_all_in_one_with_buffers(rng, shape, dtype):
    peers = Peers(rng, shape, dtype)
    want, _ = peers.torch(momentum=0.25, eps=1e-3)
    y = fn.batch_norm(
        peers.x,
        peers.mean,
        peers.var,
        peers.gamma,
        peers.beta,
        training=True,
        momentum=0.25,
        eps=1e-3,
    )
    assert_agree(y, want, dtype)
    assert_all_agree((peers.mean, peers.var), [b.numpy() for b in peers.buffers], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_buffers_over_many_steps(rng, dtype):
    peers = Peers(rng, (9, 5, 4), dtype)
    for _ in range(50):
        batch = (rng.normal(size=peers.x.shape) * 2 + 1).astype(dtype)
        batch_norm(torch.tensor(batch), *peers.buffers, training=True)
        fn.batch_norm(batch, peers.mean, peers.var, training=True)
    assert_all_agree((peers.mean, peers.var), [b.numpy() for b in peers.buffers], dtype)


@pytest.mark.parametrize("shape", [(0, 5), (0, 3, 4, 4)])
def test_empty_batch(rng, shape):
    peers = Peers(rng, shape, np.float32)
    want, gradients = peers.torch()
    y = fn.batch_norm(peers.x, peers.mean, peers.var, peers.gamma, peers.beta, training=True)
    assert_agree(y, want, np.float32)
    assert_all_agree((peers.mean, peers.var), [b.numpy() for b in peers.buffers], np.float32)
    _, stats = fn.batch_norm_train(peers.x, peers.gamma, peers.beta)
    got = fn.batch_norm_backward(peers.dy, peers.x, stats, peers.gamma)
    assert_all_agree(got, gradients, np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(40, 5), (3, 5, 4, 4)])
def test_nan_and_inf(rng, shape, value):
    """The same entries of y and of the buffers turn NaN or Inf, and the others agree."""
    peers = Peers(rng, shape, np.float32)
    peers.x[2, 3] = value
    y = batch_norm(torch.tensor(peers.x), *peers.buffers, training=True).numpy()
    got = fn.batch_norm(peers.x, peers.mean, peers.var, training=True)
    np.testing.assert_allclose(got, y, rtol=1e-5, atol=1e-5)
    for array, buffer in zip((peers.mean, peers.var), peers.buffers, strict=True):
        np.testing.assert_allclose(array, buffer.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1), (1, 3, 1, 1)])
def test_one_value_per_channel_fails_in_the_same_words(shape):
    x = np.ones(shape, np.float32)
    message = "Expected more than 1 value per channel when training, got input size"
    with pytest.raises(ValueError, match=message):
        batch_norm(torch.tensor(x), None, None, training=True)
    with pytest.raises(ValueError, match=message):
        fn.batch_norm(x, training=True)


@pytest.mark.parametrize("ratio", [1, 10, 1e2, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("shape", [(4096, 64), (64, 32, 8, 8)])
def test_more_accurate_than_torch(rng, shape, ratio):
    """Against float64 on the same rounded input, for growing mean / std; see the bar."""
    peers = Peers(rng, shape, np.float32, affine=False)
    peers.x[...] = rng.normal(size=shape) + ratio
    peers.tensors[0] = torch.tensor(peers.x, requires_grad=True)
    torch_y, (torch_dx, _, _) = peers.torch(momentum=1.0)
    count = peers.x.size // shape[1]
    torch_var = peers.buffers[1].numpy().astype(np.float64) * (count - 1) / count

    y, stats = fn.batch_norm_train(peers.x)
    dx, _, _ = fn.batch_norm_backward(peers.dy, peers.x, stats)
    want_y, want = reference.batch_norm_train(peers.x)
    want_dx, _, _ = reference.batch_norm_backward(peers.dy, peers.x)

    def error(array, truth):
        return np.max(np.abs(array - truth)) / np.max(np.abs(truth))

    # Where PyTorch is as good as its output's last bits, being as good as that is enough.
    last_bits = 4 * np.finfo(np.float32).eps
    assert np.max(np.abs(stats.var / want.var - 1)) < max(
        np.max(np.abs(torch_var / want.var - 1)), last_bits
    )
    assert error(y, want_y) < max(error(torch_y, want_y), last_bits)
    assert error(dx, want_dx) < max(error(torch_dx, want_dx), last_bits)
