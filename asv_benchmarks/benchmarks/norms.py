"""Normalization of each example by itself, and local response normalization."""

import numpy as np

import nbbn.functional as F  # noqa: N812 - the usual name

from .common import NORMS, THREADS, norm_inputs, normal, use_threads


class GroupsBenchmark:
    """Layer, RMS, group and instance normalization, into fresh arrays and into kept ones."""

    params = (list(NORMS), THREADS)
    param_names = ("norm", "threads")

    def setup(self, norm, threads):
        use_threads(threads)
        self.x, self.dy, self.affine, self.stats, self.options = norm_inputs(norm)
        name, *_ = NORMS[norm]
        self.forward, self.backward = getattr(F, name), getattr(F, f"{name}_backward")
        self.out = np.empty_like(self.x)
        for time_one in (self.time_forward, self.time_backward):
            time_one(norm, threads)

    def time_forward(self, norm, threads):
        self.forward(self.x, *self.affine, **self.options)

    def time_forward_out(self, norm, threads):
        self.forward(self.x, *self.affine, **self.options, out=self.out)

    def time_backward(self, norm, threads):
        self.backward(self.dy, self.x, self.stats, self.affine[0], **self.options)

    def time_backward_out(self, norm, threads):
        self.backward(self.dy, self.x, self.stats, self.affine[0], **self.options, out=self.out)


class LocalResponseBenchmark:
    """Across five channels, and within windows of 3 by 3."""

    params = (["channels", "positions"],)
    param_names = ("over",)

    def setup(self, over):
        use_threads("all")
        self.x, self.dy = normal((16, 64, 28, 28)), normal((16, 64, 28, 28), seed=1)
        self.options = {"size": 5 if over == "channels" else 3, "over": over}
        self.time_forward(over)
        self.time_backward(over)

    def time_forward(self, over):
        F.local_response_norm(self.x, **self.options)

    def time_backward(self, over):
        F.local_response_norm_backward(self.dy, self.x, **self.options)
