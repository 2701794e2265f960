"""JAX: everything under jit, the training step as one program with donated state."""

import itertools

import jax
import jax.numpy as jnp

from . import inputs

VERSIONS = {"jax": jax.__version__}
EPS = inputs.EPS


def forward(x, gamma, beta, axis):
    axes = tuple(d for d in range(x.ndim) if d != axis % x.ndim)
    gamma, beta = (jnp.expand_dims(v, axes) for v in (gamma, beta))
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return gamma * (x - mean) * jax.lax.rsqrt(var + EPS) + beta, mean, var


def infer(x, mean, var, gamma, beta, axis):
    axes = tuple(d for d in range(x.ndim) if d != axis % x.ndim)
    mean, var, gamma, beta = (jnp.expand_dims(v, axes) for v in (mean, var, gamma, beta))
    return gamma * (x - mean) * jax.lax.rsqrt(var + EPS) + beta


def backward(dy, x, gamma, mean, var, axis):
    axes = tuple(d for d in range(x.ndim) if d != axis % x.ndim)
    gamma, m = jnp.expand_dims(gamma, axes), x.size // gamma.size
    inv_std = jax.lax.rsqrt(var + EPS)
    x_hat = (x - mean) * inv_std
    dbeta, dgamma = dy.sum(axes, keepdims=True), (dy * x_hat).sum(axes, keepdims=True)
    return gamma * inv_std * (dy - dbeta / m - x_hat * dgamma / m), dgamma, dbeta


def bn(kind, shape, axis):
    x, dy, gamma, beta, mean, var = map(jnp.asarray, inputs.batch_norm(shape, axis))
    _, batch_mean, batch_var = forward(x, gamma, beta, axis)
    function, arguments = {
        "forward": (forward, (x, gamma, beta)),
        "inference": (infer, (x, mean, var, gamma, beta)),
        "backward": (backward, (dy, x, gamma, batch_mean, batch_var)),
    }[kind]
    function = jax.jit(function, static_argnames="axis")
    return lambda: jax.block_until_ready(function(*arguments, axis=axis))


def loss_of(parameters, running, x, labels):
    *hidden, (weight, bias) = parameters
    moved = []
    for (w, gamma, beta), (mean, var) in zip(hidden, running, strict=True):
        y, batch_mean, batch_var = forward(x @ w.T, gamma, beta, axis=1)
        unbiased = batch_var[0] * (len(x) / (len(x) - 1))
        moved.append((mean + 0.1 * (batch_mean[0] - mean), var + 0.1 * (unbiased - var)))
        x = jax.nn.relu(y)
    log_p = jax.nn.log_softmax(x @ weight.T + bias)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean(), moved


def update(state, x, labels):
    parameters, first, second, running, count = state
    count = count + 1
    (loss, running), grads = jax.value_and_grad(loss_of, has_aux=True)(
        parameters, running, x, labels
    )
    tree_map = jax.tree_util.tree_map
    first = tree_map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
    second = tree_map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
    scale1, scale2 = 1 / (1 - 0.9**count), 1 / (1 - 0.999**count)
    parameters = tree_map(
        lambda p, m, v: p - inputs.LEARNING_RATE * m * scale1 / (jnp.sqrt(v * scale2) + 1e-8),
        parameters, first, second,
    )  # fmt: skip
    return (parameters, first, second, running, count), loss


def step(sizes, batch):
    *hidden, last = map(jnp.asarray, inputs.weights(sizes))
    parameters = [(w, jnp.ones(len(w)), jnp.zeros(len(w))) for w in hidden]
    parameters.append((last, jnp.zeros(len(last))))
    first, second = (jax.tree_util.tree_map(jnp.zeros_like, parameters) for _ in range(2))
    running = [(jnp.zeros(len(w)), jnp.ones(len(w))) for w in hidden]
    state = (parameters, first, second, running, jnp.zeros(()))
    jitted = jax.jit(update, donate_argnums=0)
    pairs = inputs.batches(sizes[0], sizes[-1], batch)
    data = itertools.cycle([(jnp.asarray(x), jnp.asarray(y)) for x, y in pairs])

    def train():
        nonlocal state
        state, loss = jitted(state, *next(data))
        jax.block_until_ready(state)
        return float(loss)

    return train
