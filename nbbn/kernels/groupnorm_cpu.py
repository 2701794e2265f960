"""Layer, RMS, group and instance normalization on the CPU: x (N, G, D, S), forward and backward.

The statistics are those of each run, the D * S consecutive elements of one (n, g); gamma and beta
have an element for each of the G * D channels. Layer and RMS normalization are (rows, 1, K, 1),
instance normalization is (N, C, 1, S). Where not `centered`, as in RMS normalization, the mean
counts as 0. An empty array stands for "not given" in gamma and beta.

Forward: a run is read twice, the second time from a core's own cache. Its statistics are sums about
a value near the mean as `_planes_cpu` computes them, and `(x - shift) * inv_std` does not cancel,
where `shift` is the mean rounded to x's type; the rest of the mean is added afterwards.

Backward: for each run the sums of h = gamma * dy and of h * (x - shift), then
dx = inv_std * (h + (b * (x - shift) + d)). dgamma and dbeta are sums over blocks of examples: eight
rows at a time in the type of x where S is 1, else a plane at a time, and in float64 from there up;
the blocks, whose number the shape alone fixes, add up in order.
"""

import numpy as np
from numba import prange

from ._channels_cpu import ELEMENTS_PER_BLOCK, FAR, MAX_BLOCKS, moments
from ._jit import Kernel, bounds, device_function, prepares, scratch, workers
from ._planes_cpu import center_of
from ._vector import sum_products, sum_scaled_products, sum_squares

# In a longer piece, squares of numbers with few digits, k^2 with k an integer, lose too much: they
# are 0 or 1 modulo 4, and are rounded down again and again.
ELEMENTS_PER_PIECE = 512
# Shorter runs are summed in float64: there are too few errors to average out.
FEW_ELEMENTS = 256
ROWS_IN_RUN = 8

# ---------------------------------------------------------------- kernels: forward


@device_function
def _sums(run, shift):
    """Sums of run - shift and of its square: over short pieces in shift's type, then float64."""
    total, square, i = 0.0, 0.0, 0
    while i < run.size:
        end = min(i + ELEMENTS_PER_PIECE, run.size)
        one, other = sum_squares(run, i, end, shift)
        total += one
        square += other
        i = end
    return total, square


@device_function
def _statistics(run, centered):
    """Mean and biased variance of a run (M,); or 0 and the mean of its squares."""
    number, count = run.dtype.type, float(run.size)
    shift = center_of(run, 0, run.size) if centered else number(0)
    if run.size < FEW_ELEMENTS:
        total, square = _sums(run, np.float64(shift))
    else:
        total, square = _sums(run, shift)
    if not centered:
        # What overflows in the type of the run need not do so in float64.
        return 0.0, (square if square < np.inf else _sums(run, 0.0)[1]) / count
    mean = shift + total / count
    # A shift far from the mean, of outliers or a margin, has cost digits: sum about the mean.
    if FAR * (square - total * total / count) < square:
        shift = number(mean)
        total, square = _sums(run, np.float64(shift))
        mean = shift + total / count
    deviation = square - total * (total / count)
    var = max(deviation, 0.0) / count
    return (mean, var) if var < np.inf else moments(run.reshape(1, run.size))


@Kernel
def _forward(x, gamma, beta, eps, centered, y, mean, var, inv_std):
    """x, y (N, G, D, S); gamma, beta (G * D,); mean, var, inv_std (N * G,) in float64."""
    N, G, D, S = x.shape
    runs, results = x.reshape(N * G, D * S), y.reshape(N * G, D * S)
    number = x.dtype.type
    for r in prange(N * G):
        run, result = runs[r], results[r]
        mean[r], var[r] = _statistics(run, centered)
        inv = 1.0 / np.sqrt(var[r] + eps)
        inv_std[r] = inv
        shift = number(mean[r])
        rest = (np.float64(shift) - mean[r]) * inv
        c = r % G * D
        if S == 1:
            scale = gamma[c : c + D] if gamma.size > 0 else run
            offset = beta[c : c + D] if beta.size > 0 else run
            factor, addend = number(inv), number(rest)
            for i in range(D):
                value = (run[i] - shift) * factor + addend
                if gamma.size > 0:
                    value *= scale[i]
                if beta.size > 0:
                    value += offset[i]
                result[i] = value
        else:
            for d in range(D):
                of_gamma = np.float64(gamma[c + d]) if gamma.size > 0 else 1.0
                of_beta = np.float64(beta[c + d]) if beta.size > 0 else 0.0
                factor, addend = number(inv * of_gamma), number(rest * of_gamma + of_beta)
                source, target = run[d * S : d * S + S], result[d * S : d * S + S]
                for i in range(S):
                    target[i] = (source[i] - shift) * factor + addend


# ---------------------------------------------------------------- kernels: backward


@device_function
def _sum_of_products(dy, scale, x, shift):
    """Sums of h and of h * (x - shift) with h = dy * scale; all (M,), scale may be empty."""
    total, product, i = 0.0, 0.0, 0
    while i < x.size:
        end = min(i + ELEMENTS_PER_PIECE, x.size)
        if scale.size > 0:
            h, p = sum_scaled_products(dy, scale, x, i, end, shift)
        else:
            h, p = sum_products(dy, x, i, end, shift)
        total += h
        product += p
        i = end
    return total, product


@device_function
def _products(dy, scale, x, shift, rest, few):
    """Sums of h and of h * (x - mean), with mean = shift + rest."""
    if few:
        total, product = _sum_of_products(dy, scale, x, np.float64(shift))
    else:
        total, product = _sum_of_products(dy, scale, x, shift)
    # Beside an infinite sum the rest is nothing, and 0 * Inf would be NaN.
    return total, product - (rest * total if abs(total) < np.inf else 0.0)


@device_function
def _coefficients(total, product, inv, rest, count, centered):
    """b and d of dx = inv * (h + (b * (x - shift) + d))."""
    b = -inv * (product * inv / count)
    return b, (-total / count if centered else 0.0) - b * rest


@device_function
def _backward_rows(dy, x, gamma, mean, inv_std, centered, n0, n1, g, dx, dgamma, dbeta, narrow):
    """Backward of runs (n, g) for n0 <= n < n1 where S is 1; dgamma, dbeta (D,) in float64."""
    _, G, D, _ = x.shape
    number = x.dtype.type
    of_gamma, of_beta = narrow[:D], narrow[D : 2 * D]
    scale = gamma[g * D : g * D + D] if gamma.size > 0 else gamma
    for n in range(n0, n1):
        if (n - n0) % ROWS_IN_RUN == 0:
            for i in range(D):
                of_gamma[i] = 0
                of_beta[i] = 0
        r = n * G + g
        run, gradient = x[n, g].reshape(D), dy[n, g].reshape(D)
        target = dx[n, g].reshape(D)
        factor, shift = number(inv_std[r]), number(mean[r])
        rest = mean[r] - np.float64(shift)
        total, product = _products(gradient, scale, run, shift, rest, D < FEW_ELEMENTS)
        b, d = _coefficients(total, product, inv_std[r], rest, D, centered)
        slope, constant, addend = number(b), number(d), number(-rest * inv_std[r])
        factors = scale if gamma.size > 0 else run
        for i in range(D):
            h = gradient[i]
            distance = run[i] - shift
            of_beta[i] += h
            of_gamma[i] += h * (distance * factor + addend)
            if gamma.size > 0:
                h *= factors[i]
            target[i] = factor * (h + (slope * distance + constant))
        if (n - n0) % ROWS_IN_RUN == ROWS_IN_RUN - 1 or n + 1 == n1:
            for i in range(D):
                dgamma[i] += of_gamma[i]
                dbeta[i] += of_beta[i]


@device_function
def _backward_run(dy, x, gamma, mean, inv, centered, dx, dgamma, dbeta, few):
    """Backward of one run (D, S); dgamma and dbeta (D,) in float64."""
    D, S = x.shape
    number = x.dtype.type
    shift = number(mean)
    rest = mean - np.float64(shift)
    total, product = 0.0, 0.0
    for d in range(D):
        h, p = _products(dy[d], gamma[:0], x[d], shift, rest, few)
        dbeta[d] += h
        dgamma[d] += p * inv
        factor = np.float64(gamma[d]) if gamma.size > 0 else 1.0
        total += h * factor
        product += p * factor
    b, c = _coefficients(total, product, inv, rest, D * S, centered)
    slope, constant = number(inv * b), number(inv * c)
    for d in range(D):
        factor = number(inv * gamma[d]) if gamma.size > 0 else number(inv)
        gradient, run, target = dy[d], x[d], dx[d]
        for i in range(S):
            target[i] = factor * gradient[i] + (slope * (run[i] - shift) + constant)


@Kernel
def _backward(
    dy, x, gamma, mean, inv_std, centered, threads, parts, dx, dgamma, dbeta, wide, narrow
):
    """dy, x, dx (N, G, D, S); dgamma, dbeta (G * D,); mean, inv_std (N * G,) in float64."""
    N, G, D, S = x.shape
    C = G * D
    n_parts, g_parts = parts
    for t in prange(threads):
        own = narrow[2 * D * t : 2 * D * (t + 1)]
        first, last = bounds(t, threads, n_parts * g_parts)
        for part in range(first, last):
            p = part // g_parts
            n0, n1 = bounds(p, n_parts, N)
            g0, g1 = bounds(part % g_parts, g_parts, G)
            sums = wide[2 * C * p : 2 * C * (p + 1)]
            of_gamma, of_beta = sums[:C], sums[C:]
            of_gamma[g0 * D : g1 * D] = 0.0
            of_beta[g0 * D : g1 * D] = 0.0
            if S == 1:
                for g in range(g0, g1):
                    c = slice(g * D, g * D + D)
                    _backward_rows(
                        dy, x, gamma, mean, inv_std, centered, n0, n1, g,
                        dx, of_gamma[c], of_beta[c], own,
                    )  # fmt: skip
            else:
                for n in range(n0, n1):
                    for g in range(g0, g1):
                        c, r = slice(g * D, g * D + D), n * G + g
                        _backward_run(
                            dy[n, g], x[n, g], gamma[c], mean[r], inv_std[r], centered,
                            dx[n, g], of_gamma[c], of_beta[c], D * S < FEW_ELEMENTS,
                        )  # fmt: skip
    for p in range(1, n_parts):
        for j in range(2 * C):
            wide[j] += wide[2 * C * p + j]
    for j in range(C):
        dgamma[j] = wide[j]
        dbeta[j] = wide[C + j]


# ---------------------------------------------------------------- launchers


def _parts_of(shape):
    """Into how many blocks N and G are cut; those of N have sums of their own."""
    N, G, D, S = shape
    n_parts = max(
        1, min(N * G * D * S // ELEMENTS_PER_BLOCK, MAX_BLOCKS, N, max(2, N * S // ROWS_IN_RUN))
    )
    return n_parts, min(G, max(1, MAX_BLOCKS // n_parts))


@prepares
def normalize(x, gamma, beta, eps, centered, y, mean, var, inv_std):
    """Normalize each run of x; fills y, mean, var (about 0 where not centered) and inv_std."""
    _forward(workers(x.size), x, gamma, beta, eps, centered, y, mean, var, inv_std)


@prepares
def normalize_backward(dy, x, gamma, mean, inv_std, centered, dx, dgamma, dbeta):
    """Gradients of `normalize`."""
    threads, parts = workers(x.size), _parts_of(x.shape)
    _, G, D, _ = x.shape
    wide, narrow = scratch(2 * G * D * parts[0], 2 * D * threads, x.dtype)
    _backward(
        threads, dy, x, gamma, mean, inv_std, centered, threads, parts, dx, dgamma, dbeta,
        wide, narrow,
    )  # fmt: skip
