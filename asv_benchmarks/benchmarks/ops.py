"""Every other operation: activations, softmax and loss, updates, batches; and what BLAS does."""

import numpy as np

import nbbn
import nbbn.functional as F  # noqa: N812 - the usual name

from .common import batch_norm_inputs, labels, normal, use_threads

ROWS = {"128x10": (128, 10), "128x256": (128, 256), "8192x1024": (8192, 1024)}


class ActivationBenchmark:
    params = (
        list(ROWS),
        ["relu", "sigmoid", "tanh", "gelu", "silu", "leaky_relu", "softmax", "log_softmax"],
    )
    param_names = ("shape", "op")

    def setup(self, shape, op):
        use_threads("all")
        self.x, self.dy = normal(ROWS[shape]), normal(ROWS[shape], seed=1)
        self.forward, self.backward = getattr(F, op), getattr(F, f"{op}_backward")
        self.y = self.forward(self.x)
        self.backward(self.dy, self.y)

    def time_forward(self, shape, op):
        self.forward(self.x)

    def time_in_place(self, shape, op):
        np.copyto(self.y, self.x)
        self.forward(self.y, out=self.y)

    def time_backward(self, shape, op):
        self.backward(self.dy, self.y)


# Name -> N, C, H = W, filters, kernel, stride, groups.
WINDOWS = {
    "32x1x28, 32 of 3": (32, 1, 28, 32, 3, 1, 1),
    "32x32x28, 64 of 3": (32, 32, 28, 64, 3, 1, 1),
    "32x64x14, 128 of 1": (32, 64, 14, 128, 1, 1, 1),
    "32x32x28, 64 of 3, stride 2": (32, 32, 28, 64, 3, 2, 1),
    "32x64x14, depthwise": (32, 64, 14, 64, 3, 1, 64),
}


class ConvolutionBenchmark:
    params = (list(WINDOWS), [1, -1])
    param_names = ("window", "axis")

    def setup(self, window, axis):
        use_threads("all")
        count, channels, size, filters, kernel, stride, groups = WINDOWS[window]
        last = (count, size, size, channels)
        self.x = normal((count, channels, size, size) if axis == 1 else last)
        self.weight = normal((filters, channels // groups, kernel, kernel), seed=1)
        self.options = {"stride": stride, "padding": "same", "groups": groups, "axis": axis}
        self.dy = F.conv2d(self.x, self.weight, **self.options)
        self.time_backward(window, axis)

    def time_forward(self, window, axis):
        F.conv2d(self.x, self.weight, **self.options)

    def time_backward(self, window, axis):
        F.conv2d_backward(self.dy, self.x, self.weight, **self.options)


class PoolingBenchmark:
    """Windows side by side and overlapping, channels first and last."""

    params = (
        ["64x32x28x28", "64x28x28x32 last"],
        ["max 2", "max 3, stride 2", "avg 2", "avg 3, stride 1", "global avg"],
    )
    param_names = ("shape", "windows")

    def setup(self, shape, windows):
        use_threads("all")
        first = not shape.endswith("last")
        x = normal((64, 32, 28, 28) if first else (64, 28, 28, 32))
        shape, axis = x.shape, 1 if first else -1
        kind, *rest = windows.replace(",", "").split()
        if kind == "global":
            dy = F.global_avg_pool2d(x, axis=axis)
            self.forward = lambda: F.global_avg_pool2d(x, axis=axis)
            self.backward = lambda: F.global_avg_pool2d_backward(dy, shape, axis=axis)
        else:
            size, step = int(rest[0]), int(rest[-1])
            options = {"stride": step, "padding": size // 3, "axis": axis}
            function = F.max_pool2d if kind == "max" else F.avg_pool2d
            back = F.max_pool2d_backward if kind == "max" else F.avg_pool2d_backward
            made = function(x, size, **options)
            given = made if kind == "max" else (made,)
            self.forward = lambda: function(x, size, **options)
            self.backward = lambda: back(*given, shape, size, **options)
        self.forward()
        self.backward()

    def time_forward(self, shape, windows):
        self.forward()

    def time_backward(self, shape, windows):
        self.backward()


class CrossEntropyBenchmark:
    params = (list(ROWS),)
    param_names = ("shape",)

    def setup(self, shape):
        use_threads("all")
        rows, classes = ROWS[shape]
        self.logits, self.labels = normal(ROWS[shape]), labels(rows, classes)
        self.time_forward(shape)
        self.time_backward(shape)

    def time_forward(self, shape):
        F.cross_entropy(self.logits, self.labels)

    def time_backward(self, shape):
        F.cross_entropy_backward(self.logits, self.labels)


class RunningStatsBenchmark:
    params = (["128x256", "1024x1024"],)
    param_names = ("shape",)

    def setup(self, shape):
        *_, self.stats, _ = batch_norm_inputs(shape)
        self.mean, self.var = (np.zeros(self.stats.mean.size, np.float32) for _ in range(2))
        self.time_update(shape)

    def time_update(self, shape):
        F.update_running_stats(self.mean, self.var, self.stats)


class OptimizerBenchmark:
    """One update of as many parameters as the net 784-256-128-10 has, and of ten times that."""

    params = ([235_000, 2_350_000], ["SGD", "Adam", "AdamW"])
    param_names = ("parameters", "optimizer")

    def setup(self, parameters, optimizer):
        use_threads("all")
        options = {"momentum": 0.9} if optimizer == "SGD" else {}
        self.parameter = nbbn.Parameter(normal((parameters,)).copy())
        self.optimizer = getattr(nbbn.optim, optimizer)([self.parameter], lr=1e-3, **options)
        self.parameter.grad = normal((parameters,), seed=1).copy()
        self.time_step(parameters, optimizer)

    def time_step(self, parameters, optimizer):
        self.optimizer.step()


class BatchesBenchmark:
    """Shuffle, gather and scale 6,000 images of 784 bytes in batches of 128."""

    def setup(self):
        use_threads("all")
        images = np.random.default_rng(0).integers(0, 256, (6000, 784), np.uint8)
        self.batches = nbbn.data.Batches(images, labels(6000), 128, rng=0, reuse=True)
        self.time_epoch()

    def time_epoch(self):
        for _ in self.batches:
            pass


class DenseBLASBenchmark:
    """The matrix products of a Dense layer: NumPy's BLAS, no code of this library."""

    params = ([64, 128, 512], [256, 1024])
    param_names = ("batch", "width")

    def setup(self, batch, width):
        self.x, self.dy = normal((batch, 784)), normal((batch, width), seed=1)
        self.weight = normal((width, 784), seed=2)
        self.y, self.dx = np.empty((batch, width), np.float32), np.empty_like(self.x)
        self.dweight = np.empty_like(self.weight)
        self.time_forward(batch, width)
        self.time_backward(batch, width)

    def time_forward(self, batch, width):
        np.matmul(self.x, self.weight.T, self.y)

    def time_backward(self, batch, width):
        np.matmul(self.dy, self.weight, self.dx)
        np.matmul(self.dy.T, self.x, self.dweight)
