"""Recurrent layers: a training step of 28 steps of 28 features, 128 sequences, 128 units."""

import nbbn
from nbbn import losses, optim

from .common import CELLS, labels, normal, use_threads

LAYERS = {
    "LSTM": lambda: nbbn.LSTM(28, 128, last=True, rng=0),
    "LSTM, batch norm": lambda: nbbn.LSTM(28, 128, last=True, rng=0, normalization="batch"),
    "LSTM, layer norm": lambda: nbbn.LSTM(28, 128, last=True, rng=0, normalization="layer"),
    "GRU": lambda: nbbn.GRU(28, 128, last=True, rng=0),
    "RNN": lambda: nbbn.RNN(28, 128, last=True, rng=0),
}


class RecurrentStepBenchmark:
    params = (list(LAYERS),)
    param_names = ("layer",)

    def setup(self, layer):
        use_threads("all")
        model = nbbn.Sequential(LAYERS[layer](), nbbn.Dense(128, 10, rng=0))
        optimizer = optim.Adam(model.parameters())
        self.step = nbbn.train.record_step(model, losses.cross_entropy, optimizer)
        self.batch = normal((128, 28, 28)), labels(128, 10)
        # The first two calls record.
        for _ in range(3):
            self.time_step(layer)

    def time_step(self, layer):
        self.step(*self.batch)


class PyTorchStepBenchmark:
    params = (CELLS,)
    param_names = ("layer",)

    def setup(self, layer):
        try:
            import torch
        except ImportError:
            raise NotImplementedError("PyTorch is not installed") from None
        self.layer = getattr(torch.nn, layer)(28, 128, batch_first=True)
        self.head = torch.nn.Linear(128, 10)
        self.loss = torch.nn.functional.cross_entropy
        parameters = [*self.layer.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.Adam(parameters, fused=True)
        self.x = torch.from_numpy(normal((128, 28, 28)))
        self.y = torch.from_numpy(labels(128, 10))
        self.time_step(layer)

    def time_step(self, layer):
        self.optimizer.zero_grad()
        self.loss(self.head(self.layer(self.x)[0][:, -1]), self.y).backward()
        self.optimizer.step()
