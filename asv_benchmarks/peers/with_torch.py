"""PyTorch, eager or compiled: the quickest way in that its public operators offer."""

import itertools
import math

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name
from torch import nn

from . import inputs

VERSIONS = {"torch": torch.__version__}
EPS = inputs.EPS


def forward(x, gamma, beta):
    return F.batch_norm(x, None, None, gamma, beta, training=True, eps=EPS)


def infer(x, mean, var, gamma, beta):
    return F.batch_norm(x, mean, var, gamma, beta, eps=EPS)


def backward(dy, x, gamma, mean, inv_std):
    return torch.ops.aten.native_batch_norm_backward(
        dy, x, gamma, None, None, mean, inv_std, True, EPS, [True, True, True]
    )


def bn(kind, shape, axis, compiled=False):
    x, dy, *vectors = (torch.from_numpy(array) for array in inputs.batch_norm(shape, axis))
    if axis == -1:
        # The same bytes, seen as (N, C, H, W) in the channels-last memory format.
        x, dy = (array.permute(0, -1, *range(1, array.ndim - 1)) for array in (x, dy))
    gamma, beta, mean, var = vectors
    _, batch_mean, inv_std = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.1, EPS)
    function, arguments = {
        "forward": (forward, (x, gamma, beta)),
        "inference": (infer, (x, mean, var, gamma, beta)),
        "backward": (backward, (dy, x, gamma, batch_mean, inv_std)),
    }[kind]
    if compiled:
        torch._dynamo.reset()
        function = torch.compile(function, dynamic=False)

    # Entered once: entering at every call would cost as much as a small kernel.
    torch.inference_mode().__enter__()
    return lambda: function(*arguments)


def norms(kind, norm, shape, groups):
    """Inference computes the result alone, forward keeps what backward needs."""
    arrays = inputs.batch_norm(tuple(shape), 1)
    x, dy, gamma, beta, *_ = (torch.from_numpy(array) for array in arrays)
    last, want = (shape[1],), [True, True, True]
    if norm == "instance_norm":
        groups = shape[1]
    if norm == "layer_norm":
        plain = lambda: F.layer_norm(x, last, gamma, beta, EPS)  # noqa: E731
        forward = lambda: torch.native_layer_norm(x, last, gamma, beta, EPS)  # noqa: E731
        _, mean, inv_std = forward()
        backward = lambda: torch.ops.aten.native_layer_norm_backward(  # noqa: E731
            dy, x, last, mean, inv_std, gamma, beta, want
        )
    elif norm == "rms_norm":
        plain = lambda: F.rms_norm(x, last, gamma, EPS)  # noqa: E731
        leaves = x.clone().requires_grad_(), gamma.clone().requires_grad_()
        forward = lambda: F.rms_norm(leaves[0], last, leaves[1], EPS)  # noqa: E731
        y = forward()
        backward = lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)  # noqa: E731
        return {"forward": forward, "inference": plain, "backward": backward}[kind]
    else:
        sizes = shape[0], shape[1], math.prod(shape[2:]), groups
        plain = lambda: F.group_norm(x, groups, gamma, beta, EPS)  # noqa: E731
        forward = lambda: torch.native_group_norm(x, gamma, beta, *sizes, EPS)  # noqa: E731
        _, mean, inv_std = forward()
        backward = lambda: torch.ops.aten.native_group_norm_backward(  # noqa: E731
            dy, x, mean, inv_std, gamma, *sizes, want
        )
    torch.inference_mode().__enter__()
    return {"forward": forward, "inference": plain, "backward": backward}[kind]


def mlp(sizes):
    """Dense, BatchNorm, ReLU for each hidden layer, and a last Dense."""
    layers = []
    for n_in, n_out in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(n_in, n_out, bias=False), nn.BatchNorm1d(n_out), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return model


def step(sizes, batch, compiled=False):
    torch.manual_seed(0)
    return _step(mlp(sizes), inputs.batches(sizes[0], sizes[-1], batch), compiled)


def cnn(filters, batch, compiled=False):
    torch.manual_seed(0)
    layers, channels = [], 1
    for count in filters:
        layers += [nn.Conv2d(channels, count, 3, padding=1, bias=False), nn.BatchNorm2d(count)]
        layers.append(nn.ReLU())
        channels = count
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(784 * channels, 10))
    return _step(model, inputs.images(batch), compiled)


def recurrent(cell, compiled=False):
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = getattr(nn, cell)(28, 128, batch_first=True)
            self.head = nn.Linear(128, 10)

        def forward(self, x):
            return self.head(self.layer(x)[0][:, -1])

    return _step(Last(), inputs.sequences(), compiled)


def _step(model, pairs, compiled):
    optimizer = torch.optim.Adam(model.parameters(), lr=inputs.LEARNING_RATE, fused=True)
    if compiled:
        torch._dynamo.reset()
        model = torch.compile(model, dynamic=False)
    data = itertools.cycle([(torch.from_numpy(x), torch.from_numpy(y)) for x, y in pairs])

    def train():
        x, y = next(data)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train
