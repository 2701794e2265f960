"""A training twice: through a recorded step, and eagerly."""

from __future__ import annotations

import numpy as np

import nbbn
from nbbn import Tape, losses, optim
from nbbn.train.loop import record_step

FEATURES, CLASSES = 12, 4


class Pair:
    """The same training twice: through a recorded step, and eagerly, as a user would write it.

    `make` builds a model and its optimizer; it is called twice and must give the same bits.
    """

    def __init__(self, make, loss=losses.cross_entropy):
        self.model, self.optimizer = make()
        self.twin, self.peer = make()
        self.loss = loss
        # How many steps of the recorded one ran eagerly: while recording, or for good.
        self.runs = 0
        self.step = record_step(self.model, loss, self.optimizer)
        eager = self.step._eager

        def counted(x, y):
            self.runs += 1
            return eager(x, y)

        self.step._eager = counted

    def eager(self, x, y) -> float:
        self.peer.zero_grad()
        with Tape() as tape:
            loss = self.loss(self.twin(x), y)
        tape.backward(loss)
        self.peer.step()
        self.peer.zero_grad()
        return loss.item()

    def train(self, batches) -> int:
        """Run both over `batches`, compare everything after each; return how many replayed."""
        before, count = self.runs, 0
        for x, y in batches:
            copies = x.copy(), y.copy()
            assert self.step(x, y) == self.eager(x, y)
            self.compare()
            np.testing.assert_array_equal(x, copies[0])
            np.testing.assert_array_equal(y, copies[1])
            count += 1
        return count - (self.runs - before)

    def both(self, change) -> None:
        """Apply `change(model, optimizer)` to both."""
        change(self.model, self.optimizer)
        change(self.twin, self.peer)

    def compare(self) -> None:
        """Check that parameters, running statistics and optimizer state hold the same bits."""
        for own, other in ((self.model, self.twin), (self.optimizer, self.peer)):
            state, expected = own.state_dict(), other.state_dict()
            assert state.keys() == expected.keys()
            for name, array in state.items():
                assert array.tobytes() == expected[name].tobytes(), name


def under(make_model, optimizer=lambda p: optim.SGD(p, 0.1)):
    """Return what makes a model, or a Sequential of the layers, and an optimizer for it."""

    def make():
        model = make_model()
        if not isinstance(model, nbbn.Module):
            model = nbbn.Sequential(*model)
        return model, optimizer(model.parameters())

    return make


def adam(parameters):
    return optim.Adam(parameters, 0.01)


def adam_mlp(**options):
    return under(lambda: nbbn.mlp((FEATURES, 10, 8, CLASSES), rng=1, **options), adam)()


def batches(rng, sizes, shape=(FEATURES,), dtype=np.float32, label=np.int64):
    return [
        (rng.normal(size=(n, *shape)).astype(dtype), rng.integers(0, CLASSES, n).astype(label))
        for n in sizes
    ]
