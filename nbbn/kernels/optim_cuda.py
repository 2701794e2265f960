"""Optimizer steps over one flat array of parameters, in place, on a CUDA device.

`hyper` holds the step's numbers, in the type of the parameters and ready for use, in device memory:
a replayed graph reads the current ones.
"""

from ._cuda import Elementwise
from ._cuda_lanes import choose, load, spread, sqrt, store

# ---------------------------------------------------------------- kernels


@Elementwise
def _sgd(i, like, operands):
    """v = momentum * v + g; p -= lr * v; all (size,). velocity is empty without momentum."""
    grad, hyper, data, velocity = operands
    lr, momentum, decay = hyper[0], hyper[1], hyper[2]
    p = load(data, i, like)
    gradient = load(grad, i, like) + p * decay
    if velocity.size > 0:
        v = load(velocity, i, like) * momentum + gradient
        store(velocity, i, v)
        gradient = choose(spread(hyper[3], like), gradient + v * momentum, v)
    store(data, i, p - gradient * lr)


@Elementwise
def _adam(i, like, operands):
    """Adam with bias correction; data, grad, mean, square (size,)."""
    grad, hyper, data, mean, square = operands
    lr, beta1, beta2, rest1, rest2 = hyper[0], hyper[1], hyper[2], hyper[3], hyper[4]
    eps, decay, keep, correction = hyper[5], hyper[6], hyper[7], hyper[8]
    p = load(data, i, like)
    gradient = load(grad, i, like) + p * decay
    m = load(mean, i, like) * beta1 + gradient * rest1
    v = load(square, i, like) * beta2 + gradient * rest2 * gradient
    store(mean, i, m)
    store(square, i, v)
    store(data, i, p * keep - m * lr / (sqrt(v) * correction + eps))


# ---------------------------------------------------------------- launchers


def sgd(grad, hyper, data, velocity):
    """SGD step; hyper = (lr, momentum, weight decay, 1 for Nesterov's form)."""
    _sgd(grad, hyper, data, velocity, aligned=(grad, velocity, data))


def adam(grad, hyper, data, mean, square):
    """Adam step.

    hyper = (lr / (1 - beta1^t), beta1, beta2, 1 - beta1, 1 - beta2, eps, L2 decay,
    1 - lr * decoupled decay, 1 / sqrt(1 - beta2^t)).
    """
    _adam(grad, hyper, data, mean, square, aligned=(grad, mean, square, data))
