"""The linear layer of sparse rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import backend
from ...errors import ShapeError
from ...functional import checks
from ._common import RecordableOp, empty_beside


class SparseLinear(RecordableOp):
    """x @ weight.T + bias for CSR rows x (N, in), which are constants."""

    fresh = True

    @staticmethod
    def forward(
        ctx: Any,
        values: np.ndarray,
        indices: np.ndarray,
        indptr: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        *,
        features: int,
    ) -> np.ndarray:
        dtype = checks.floating(weight, "weight")
        if weight.ndim != 2 or weight.shape[1] != features:
            raise ShapeError(
                f"a linear layer of weight {weight.shape} does not take sparse rows of {features} "
                "columns"
            )
        checks.host_only(weight, "a sparse batch")
        ctx.rows, ctx.weight, ctx.bias = (values, indices, indptr), weight, bias
        y = backend.empty((indptr.size - 1, weight.shape[0]), dtype)
        weight = backend.contiguous(weight, dtype)
        backend.run(backend.kernels("sparse").sparse_linear, *ctx.rows, weight, y)
        if bias is not None:
            bias = checks.channel_vector(bias, weight.shape[0], dtype, "bias", "cpu")
            backend.run(backend.kernels("elementwise").add_bias, y, bias, y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: np.ndarray) -> Any:
        dweight = dbias = None
        if ctx.needs[3]:
            dweight = ctx.buffers[3]
            if dweight is None:
                dweight = empty_beside(ctx.weight.shape, ctx.weight)
            backend.run(backend.kernels("sparse").sparse_gradient, dy, *ctx.rows, dweight)
        if ctx.needs[4]:
            dbias = ctx.buffers[4]
            if dbias is None:
                dbias = empty_beside(ctx.bias.shape, ctx.bias)
            backend.run(backend.kernels("elementwise").bias_gradient, dy, dbias)
        return None, None, None, dweight, dbias
