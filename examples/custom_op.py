"""A new differentiable operation and a layer around it, in twenty lines.

Swish, ``x * sigmoid(x)`` (Ramachandran et al., 2017), saves its input and its sigmoid for backward.
`gradcheck` compares its gradient with central differences; then a small net with it learns XOR.

Run it: python examples/custom_op.py
"""

import numpy as np

import nbbn
import nbbn.functional as F  # noqa: N812
from nbbn import optim
from nbbn.nn import losses


class SwishOp(nbbn.Op):
    """y = x * s with s = sigmoid(x); dx = dy * (s + y * (1 - s))."""

    @staticmethod
    def forward(ctx, x):
        """Compute y and keep what backward needs."""
        ctx.s = F.sigmoid(x)
        ctx.y = x * ctx.s
        return ctx.y

    @staticmethod
    def backward(ctx, dy):
        """Compute dx from dy."""
        return dy * (ctx.s + ctx.y * (1 - ctx.s))


class Swish(nbbn.Module):
    """Layer form of SwishOp."""

    def forward(self, x):
        """Apply swish to every element."""
        return nbbn.apply(SwishOp, x)


rng = np.random.default_rng(0)
error = nbbn.gradcheck(lambda x: nbbn.apply(SwishOp, x), rng.standard_normal((4, 5)))
print(f"gradcheck passed, largest error {error:.1e}")

x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
labels = np.array([0, 1, 1, 0])
model = nbbn.Sequential(nbbn.Dense(2, 16, rng=rng), Swish(), nbbn.Dense(16, 2, rng=rng))
optimizer = optim.Adam(model.parameters(), lr=0.05)
for _ in range(200):
    with nbbn.Tape() as tape:
        loss = losses.cross_entropy(model(x), labels)
    tape.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
print("XOR learned:", model(x).numpy().argmax(axis=1), f"loss {loss.item():.4f}")
