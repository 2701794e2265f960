"""What the machine allows: the bytes moved by copying, the matrix products alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nbbn.kernels import matmul_cpu

from . import inputs

VERSIONS = {"numpy": np.__version__}


def bn(kind, shape, axis, threads=1):
    """Copy an array of this shape: 2 passes over memory.

    Below a megabyte one core is quicker than handing parts to several.
    """
    x = inputs.batch_norm(shape, axis)[0].reshape(-1)
    y = np.empty_like(x)
    if threads == 1 or x.nbytes < 1e6:
        return lambda: np.copyto(y, x)
    parts = list(zip(np.array_split(y, threads), np.array_split(x, threads), strict=True))
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: np.copyto(*part), parts))


def norms(kind, norm, shape, groups, threads=1):
    """As `bn`: the same passes."""
    return bn(kind, tuple(shape), 1, threads)


def step(sizes, batch, tiles=False):
    """Only the matrix products of a step: forward, and backward but for the first layer's input.

    By NumPy's BLAS and its threads, or by nbbn's tiles on Numba's.
    """
    matmul = matmul_cpu.matmul if tiles else np.matmul
    weights = inputs.weights(sizes)
    shapes = [(batch, n) for n in sizes]
    x = [np.ones(shape, np.float32) for shape in shapes]
    dx = [np.ones(shape, np.float32) for shape in shapes]
    dweights = [np.empty_like(w) for w in weights]

    def products():
        for layer, weight in enumerate(weights):
            matmul(x[layer], weight.T, x[layer + 1])
        for layer in reversed(range(len(weights))):
            matmul(dx[layer + 1].T, x[layer], dweights[layer])
            if layer:
                matmul(dx[layer + 1], weights[layer], dx[layer])

    return products


def recurrent(cell, tiles=False):
    """As `step`: the products of all inputs, of each hidden state, and the gradients of weights."""
    matmul = matmul_cpu.matmul if tiles else np.matmul
    steps, batch, features, hidden = 28, 128, 28, 128
    wide = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell] * hidden
    x, h = (np.ones((steps * batch, size), np.float32) for size in (features, hidden))
    weight_x, weight_h = (np.ones((wide, size), np.float32) for size in (features, hidden))
    gates, state = np.ones((steps * batch, wide), np.float32), h[:batch]
    products_of_step, dstate = np.empty_like(gates[:batch]), np.empty_like(state)
    dweight_x, dweight_h = np.empty_like(weight_x), np.empty_like(weight_h)

    def products():
        matmul(x, weight_x.T, gates)
        for _ in range(steps):
            matmul(state, weight_h.T, products_of_step)
            matmul(products_of_step, weight_h, dstate)
        matmul(gates.T, h, dweight_h)
        matmul(gates.T, x, dweight_x)

    return products
