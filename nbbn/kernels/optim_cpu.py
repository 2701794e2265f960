"""Optimizer steps over one flat array of parameters, in place.

`hyper` holds the step's numbers, in the type of the parameters and ready for use, so that a
replayed step reads the current ones from memory and a device computes nothing in float64.
"""

import math

from numba import prange

from ._jit import Kernel, bounds, prepares, workers

# ---------------------------------------------------------------- kernels


@Kernel
def _sgd(grad, hyper, threads, data, velocity):
    """v = momentum * v + g; p -= lr * v; all (size,). velocity is empty without momentum."""
    lr, momentum, decay, nesterov = hyper[0], hyper[1], hyper[2], hyper[3] != 0
    for t in prange(threads):
        first, last = bounds(t, threads, data.size)
        p, g = data[first:last], grad[first:last]
        if velocity.size == 0:
            for i in range(p.size):
                p[i] -= lr * (g[i] + decay * p[i])
        else:
            v = velocity[first:last]
            for i in range(p.size):
                gradient = g[i] + decay * p[i]
                v[i] = momentum * v[i] + gradient
                p[i] -= lr * (gradient + momentum * v[i] if nesterov else v[i])


@Kernel
def _adam(grad, hyper, threads, data, mean, square):
    """Adam with bias correction; data, grad, mean, square (size,)."""
    lr, beta1, beta2, rest1, rest2 = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    eps, decay, keep, correction = hyper[5], hyper[6], hyper[7], hyper[8]
    for t in prange(threads):
        first, last = bounds(t, threads, data.size)
        p, g, m, v = data[first:last], grad[first:last], mean[first:last], square[first:last]
        for i in range(p.size):
            gradient = g[i] + decay * p[i]
            m[i] = beta1 * m[i] + rest1 * gradient
            v[i] = beta2 * v[i] + rest2 * gradient * gradient
            p[i] = keep * p[i] - lr * m[i] / (math.sqrt(v[i]) * correction + eps)


# ---------------------------------------------------------------- launchers

# Elements touched per parameter, for the choice between one thread and several.
_ARRAYS = 3


@prepares
def sgd(grad, hyper, data, velocity):
    """SGD step; hyper = (lr, momentum, weight decay, 1 for Nesterov's form)."""
    threads = workers(_ARRAYS * data.size)
    _sgd(threads, grad, hyper, threads, data, velocity)


@prepares
def adam(grad, hyper, data, mean, square):
    """Adam step.

    hyper = (lr / (1 - beta1^t), beta1, beta2, 1 - beta1, 1 - beta2, eps, L2 decay,
    1 - lr * decoupled decay, 1 / sqrt(1 - beta2^t)).
    """
    threads = workers(_ARRAYS * data.size)
    _adam(threads, grad, hyper, threads, data, mean, square)
