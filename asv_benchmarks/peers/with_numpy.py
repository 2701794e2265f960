"""NumPy: the formulas as anyone would write them first."""

import itertools

import numpy as np

from . import inputs

VERSIONS = {"numpy": np.__version__}
EPS = inputs.EPS


def forward(x, gamma, beta, axes):
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    inv_std = 1 / np.sqrt(var + EPS)
    return gamma * ((x - mean) * inv_std) + beta, mean, inv_std


def infer(x, mean, var, gamma, beta):
    return gamma * (x - mean) / np.sqrt(var + EPS) + beta


def backward(dy, x, mean, inv_std, gamma, axes):
    m = np.float32(x.size // gamma.size)
    x_hat = (x - mean) * inv_std
    dbeta, dgamma = dy.sum(axes, keepdims=True), (dy * x_hat).sum(axes, keepdims=True)
    return gamma * inv_std * (dy - dbeta / m - x_hat * dgamma / m), dgamma, dbeta


def bn(kind, shape, axis):
    axis %= len(shape)
    axes = tuple(d for d in range(len(shape)) if d != axis)
    x, dy, *vectors = inputs.batch_norm(shape, axis)
    gamma, beta, mean, var = (np.expand_dims(v, axes) for v in vectors)
    _, batch_mean, inv_std = forward(x, gamma, beta, axes)
    return {
        "forward": lambda: forward(x, gamma, beta, axes),
        "inference": lambda: infer(x, mean, var, gamma, beta),
        "backward": lambda: backward(dy, x, batch_mean, inv_std, gamma, axes),
    }[kind]


def step(sizes, batch):
    dense = inputs.weights(sizes)
    bias = np.zeros(sizes[-1], np.float32)
    gammas = [np.ones((1, n), np.float32) for n in sizes[1:-1]]
    betas = [np.zeros((1, n), np.float32) for n in sizes[1:-1]]
    running = [[np.zeros((1, n), np.float32), np.ones((1, n), np.float32)] for n in sizes[1:-1]]
    parameters = [*dense, *gammas, *betas, bias]
    first, second = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    data = itertools.cycle(inputs.batches(sizes[0], sizes[-1], batch))
    rows = np.arange(batch)
    count = 0

    def gradients(x, labels):
        saved = []
        for weight, gamma, beta, state in zip(dense, gammas, betas, running, strict=False):
            z = x @ weight.T
            y, mean, inv_std = forward(z, gamma, beta, 0)
            state[0] += 0.1 * (mean - state[0])
            state[1] += 0.1 * (z.var(0, ddof=1, keepdims=True) - state[1])
            saved.append((x, z, mean, inv_std, y > 0))
            x = np.maximum(y, 0)
        logits = x @ dense[-1].T + bias
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        p /= p.sum(1, keepdims=True)
        loss = -np.log(p[rows, labels]).mean()
        p[rows, labels] -= 1
        dy = p / np.float32(batch)
        dbias, ddense, dgammas, dbetas = dy.sum(0), [dy.T @ x], [], []
        for layer in reversed(range(len(saved))):
            x, z, mean, inv_std, positive = saved[layer]
            dy = (dy @ dense[layer + 1]) * positive
            dy, dgamma, dbeta = backward(dy, z, mean, inv_std, gammas[layer], 0)
            ddense.insert(0, dy.T @ x)
            dgammas.insert(0, dgamma)
            dbetas.insert(0, dbeta)
        return loss, [*ddense, *dgammas, *dbetas, dbias]

    def train():
        nonlocal count
        count += 1
        loss, grads = gradients(*next(data))
        for p, g, m, v in zip(parameters, grads, first, second, strict=True):
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            m_hat, v_hat = m / (1 - 0.9**count), v / (1 - 0.999**count)
            p -= inputs.LEARNING_RATE * m_hat / (np.sqrt(v_hat) + 1e-8)
        return float(loss)

    return train
