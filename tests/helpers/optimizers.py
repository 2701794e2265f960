"""Parameters whose gradients follow from their values, under nbbn's optimizers and PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn import Parameter, optim

SHAPES = [(4, 3), (3,), (), (2, 1, 5)]
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def parameters(rng, shapes=SHAPES, dtype=np.float64):
    return [Parameter(np.asarray(rng.normal(size=shape), dtype)) for shape in shapes]


def gradient(p, step: int):
    """A gradient that depends on the parameter and on the step."""
    return (np.sin(3 * p + step) + 0.1 * p).astype(p.dtype)


def advance(optimizer, step: int, having=None) -> None:
    """Take a step in which all parameters have a gradient, or those at the positions `having`."""
    for position, p in enumerate(optimizer.parameters):
        has = having is None or position in having
        p.grad = gradient(p.data, step) if has else None
    optimizer.step()


def bits(items) -> list[bytes]:
    return [p.data.tobytes() for p in items]


class Twins:
    """The same parameters under an optimizer and under PyTorch's."""

    def __init__(self, rng, make, dtype=np.float64):
        torch = pytest.importorskip("torch")
        self.own = parameters(rng, dtype=dtype)
        self.peers = [torch.tensor(p.data.copy(), requires_grad=True) for p in self.own]
        self.tensor, self.tolerance = torch.tensor, TOLERANCE[dtype]
        self.optimizer, self.peer = make(optim, self.own), make(torch.optim, self.peers)

    def step(self, number, having=range(4)) -> None:
        """Step both, along the gradients of those `having` one, and compare."""
        for position, (p, twin) in enumerate(zip(self.own, self.peers, strict=True)):
            p.grad = gradient(p.data, number) if position in having else None
            twin.grad = None if p.grad is None else self.tensor(p.grad)
        self.optimizer.step()
        self.peer.step()
        for p, twin in zip(self.own, self.peers, strict=True):
            want = twin.detach().numpy()
            assert p.dtype == want.dtype
            scale = min(1, np.abs(want).max())
            np.testing.assert_allclose(p.data, want, rtol=0, atol=self.tolerance * scale)
