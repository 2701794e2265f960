"""Batch normalization against PyTorch's: its words and its accuracy.

Values and gradients are compared in `autograd/test_ops.py`, buffers and odd batches in
`nn/test_layers.py` and `nn/test_batchnorm.py`.
"""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import functional as fn
from tests.helpers import reference

torch = pytest.importorskip("torch")
batch_norm = torch.nn.functional.batch_norm


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
    """Against float64 on the same rounded input, for growing mean / std."""
    x = (rng.normal(size=shape) + ratio).astype(np.float32)
    dy = rng.normal(size=shape).astype(np.float32)
    leaf, buffers = torch.tensor(x, requires_grad=True), [torch.zeros(shape[1]) for _ in range(2)]
    torch_y = batch_norm(leaf, *buffers, training=True, momentum=1.0)
    torch_y.backward(torch.tensor(dy))
    count = x.size // shape[1]
    torch_var = buffers[1].numpy().astype(np.float64) * (count - 1) / count

    y, stats = fn.batch_norm_train(x)
    dx, _, _ = fn.batch_norm_backward(dy, x, stats)
    want_y, want = reference.batch_norm_train(x)
    want_dx, _, _ = reference.batch_norm_backward(dy, x)

    def error(array, truth):
        return np.max(np.abs(array - truth)) / np.max(np.abs(truth))

    # Where PyTorch is as good as its output's last bits, being as good as that is enough.
    last_bits = 4 * np.finfo(np.float32).eps
    assert np.max(np.abs(stats.var / want.var - 1)) < max(
        np.max(np.abs(torch_var / want.var - 1)), last_bits
    )
    assert error(y, want_y) < max(error(torch_y.detach().numpy(), want_y), last_bits)
    assert error(dx, want_dx) < max(error(leaf.grad.numpy(), want_dx), last_bits)
