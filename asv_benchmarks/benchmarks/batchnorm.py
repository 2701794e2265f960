"""Batch normalization, functional API: forward, inference, backward, fused forms."""

import numpy as np

import nbbn.functional as F  # noqa: N812 - the usual name

from .common import DTYPES, SHAPES, THREADS, batch_norm_inputs, use_threads


class BatchNormBenchmark:
    """Results into fresh arrays."""

    params = (list(SHAPES), DTYPES, THREADS)
    param_names = ("shape", "dtype", "threads")
    out = None

    def setup(self, shape, dtype="float32", threads="all"):
        use_threads(threads)
        self.x, self.dy, self.gamma, self.beta, self.stats, self.axis = batch_norm_inputs(
            shape, dtype
        )
        for time_one in (self.time_forward, self.time_inference, self.time_backward):
            time_one()

    def time_forward(self, *params):
        F.batch_norm_train(self.x, self.gamma, self.beta, axis=self.axis, out=self.out)

    def time_inference(self, *params):
        mean, var = self.stats.mean, self.stats.var
        F.batch_norm_infer(self.x, mean, var, self.gamma, self.beta, axis=self.axis, out=self.out)

    def time_backward(self, *params):
        F.batch_norm_backward(self.dy, self.x, self.stats, self.gamma, axis=self.axis, out=self.out)


class BatchNormOutBenchmark(BatchNormBenchmark):
    """Results into arrays that the caller keeps."""

    params = (list(SHAPES),)
    param_names = ("shape",)

    def setup(self, shape):
        self.out = np.empty_like(batch_norm_inputs(shape, "float32")[0])
        super().setup(shape)


class InPlaceBatchNormBenchmark:
    """Results where x or dy was, which a copy puts back before each call."""

    params = (list(SHAPES),)
    param_names = ("shape",)

    def setup(self, shape):
        use_threads("all")
        self.x, self.dy, self.gamma, self.beta, self.stats, self.axis = batch_norm_inputs(shape)
        self.y = np.empty_like(self.x)
        self.time_inference(shape)
        self.time_backward(shape)

    def time_inference(self, shape):
        np.copyto(self.y, self.x)
        mean, var = self.stats.mean, self.stats.var
        F.batch_norm_infer(self.y, mean, var, self.gamma, self.beta, axis=self.axis, out=self.y)

    def time_backward(self, shape):
        np.copyto(self.y, self.dy)
        F.batch_norm_backward(self.y, self.x, self.stats, self.gamma, axis=self.axis, out=self.y)


class FusedBatchNormBenchmark:
    """Batch norm with what follows it, in one pass ("fused") or in separate calls."""

    params = (
        ["128x256", "8192x1024", "32x64x56x56", "32x56x56x64 last"],
        ["relu", "add relu"],
        ["fused", "separate"],
    )
    param_names = ("shape", "what", "how")

    def setup(self, shape, what, how):
        use_threads("all")
        self.x, self.dy, self.gamma, self.beta, self.stats, self.axis = batch_norm_inputs(shape)
        # dy serves as the other branch too: its values do not matter.
        self.residual = self.dy if what == "add relu" else None
        self.y = self._forward(fused=True)
        self.time_forward(shape, what, how)
        self.time_backward(shape, what, how)

    def _forward(self, fused):
        if fused:
            return F.batch_norm_train(
                self.x, self.gamma, self.beta, axis=self.axis,
                activation="relu", residual=self.residual,
            )[0]  # fmt: skip
        y, _ = F.batch_norm_train(self.x, self.gamma, self.beta, axis=self.axis)
        if self.residual is not None:
            y = y + self.residual
        return F.relu(y)

    def time_forward(self, shape, what, how):
        self._forward(how == "fused")

    def time_backward(self, shape, what, how):
        dy, y = self.dy, self.y
        if how == "separate":
            dy, y = F.relu_backward(dy, y), None
        elif self.residual is not None:
            F.relu_backward(dy, y)  # the other branch's gradient, needed either way
        F.batch_norm_backward(dy, self.x, self.stats, self.gamma, axis=self.axis, y=y)
