"""The training step and a whole epoch: time, memory, accuracy."""

import functools
import tracemalloc

import numpy as np

import nbbn
from nbbn.errors import DataError

from .common import CNNS, NETS, batches, labels, make_cnn, make_step, normal, use_threads


class StepBenchmark:
    params = (list(NETS), ["eager", "recorded"])
    param_names = ("net", "mode")

    def setup(self, net, mode):
        use_threads("all")
        self.step, _ = make_step(net, mode == "recorded")
        self.batches = batches(net)
        # The first two calls record.
        for _ in range(4):
            self.time_step(net, mode)

    def time_step(self, net, mode):
        self.step(*next(self.batches))

    def peakmem_step(self, net, mode):
        self.step(*next(self.batches))


class CnnStepBenchmark:
    """A recorded step of a convolutional net."""

    params = (list(CNNS),)
    param_names = ("net",)

    def setup(self, net):
        use_threads("all")
        filters, count = CNNS[net]
        model = make_cnn(filters)
        optimizer = nbbn.optim.Adam(model.parameters(), lr=1e-3)
        self.step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer)
        self.batch = normal((count, 1, 28, 28)), labels(count)
        # The first two calls record.
        for _ in range(4):
            self.time_step(net)

    def time_step(self, net):
        self.step(*self.batch)

    def peakmem_step(self, net):
        self.step(*self.batch)


class StepMemoryBenchmark:
    """Peak of all allocations over what training must keep: 1.0 would be no waste at all.

    "kept" is parameters, optimizer state and saved activations; "kept and gradients" adds the
    gradients, as many as parameters.
    """

    params = (list(NETS), ["eager", "recorded"], ["kept", "kept and gradients"])
    param_names = ("net", "mode", "over")
    unit = "ratio"

    def track_peak(self, net, mode, over):
        data = batches(net)
        make_step(net, mode == "recorded")[0](*next(data))  # compiles
        tracemalloc.start()
        try:
            step, model = make_step(net, mode == "recorded")
            tracemalloc.reset_peak()
            for _ in range(4):
                step(*next(data))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        parameters = sum(p.data.nbytes for p in model.parameters())
        hidden, batch = NETS[net]
        # Of each hidden layer the input of its BatchNorm and the output of its ReLU; the logits.
        activations = 4 * batch * (2 * sum(hidden) + 10)
        return peak / (parameters * (3 if over == "kept" else 4) + activations)


@functools.cache
def _mnist():
    try:
        return nbbn.data.load_mnist(download=False)
    except DataError:
        return None


def _train(images, truth):
    rng = np.random.default_rng(0)
    data = nbbn.data.Batches(images, truth, 128, rng=rng, reuse=True)
    model = nbbn.mlp((784, 256, 128, 10), rng=rng)
    rate = nbbn.optim.OneCycle(4e-3, len(data))
    nbbn.train.fit(model, data, nbbn.optim.Adam(model.parameters(), lr=rate), epochs=1)
    return model


class EpochBenchmark:
    """One epoch of 784-256-128-10 on MNIST, or on noise of its shape where it is not at hand."""

    timeout = 600

    def setup(self):
        use_threads("all")
        if mnist := _mnist():
            self.images, self.labels = mnist.train_images, mnist.train_labels
        else:
            self.images = np.random.default_rng(0).integers(0, 256, (60_000, 784), np.uint8)
            self.labels = labels(60_000)
        _train(self.images[:256], self.labels[:256])

    def time_epoch(self):
        _train(self.images, self.labels)


class AccuracyAfterOneEpochBenchmark:
    unit = "%"
    timeout = 600

    def setup(self):
        if _mnist() is None:
            raise NotImplementedError("MNIST is not at hand: `nbbn data` fetches it")

    def track_test_accuracy(self):
        mnist = _mnist()
        model = _train(mnist.train_images, mnist.train_labels)
        test = nbbn.data.Batches(mnist.test_images, mnist.test_labels, 1000, shuffle=False)
        return 100 * nbbn.train.evaluate(model, test).accuracy
