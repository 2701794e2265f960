"""Per-channel numbers of batch normalization on the CPU: what rows and planes share.

Blocks of an array merge by Chan's formula in an order that the shape alone fixes. `wide` is float64
scratch; `narrow` is scratch in the array's own type, laid out as the passes over the array read it.
"""

import numpy as np

from ._jit import bounds, device_function

ELEMENTS_PER_BLOCK = 32_768
MAX_BLOCKS = 64
# A second pass begins with what the first read last, but ascends within a piece of so many bytes:
# the processor foresees ascending streams only.
BYTES_PER_PIECE = 1 << 18
# Where squares about a shift are so many times those about the mean, they are summed again.
FAR = 4.0


@device_function
def pieces_of(nbytes):
    """How many pieces a second pass over so many bytes has."""
    return max(1, nbytes // BYTES_PER_PIECE)


@device_function
def from_behind(k, pieces, start, stop):
    """First and last + 1 of piece `k` from the end of start..stop."""
    first, last = bounds(pieces - 1 - k, pieces, stop - start)
    return start + first, start + last


@device_function
def merge(count, mean, m2, other_count, other_mean, other_m2):
    """Chan's formula: fold another sample's (count, mean, M2) into mean and m2, per channel."""
    weight = other_count / (count + other_count)
    for j in range(mean.size):
        delta = other_mean[j] - mean[j]
        mean[j] += delta * weight
        m2[j] += other_m2[j] + delta * delta * count * weight


@device_function
def merge_parts(wide, N, n_parts, S, s_parts, mean, m2):
    """Merge the statistics of all parts, first to last, into mean and m2 (C,)."""
    C = mean.size
    count = 0.0
    for part in range(n_parts * s_parts):
        n0, n1 = bounds(part // s_parts, n_parts, N)
        s0, s1 = bounds(part % s_parts, s_parts, S)
        n = float((n1 - n0) * (s1 - s0))
        w = wide[4 * C * part : 4 * C * part + 2 * C]
        if part == 0:
            for j in range(C):
                mean[j] = w[j]
                m2[j] = w[C + j]
        else:
            merge(count, mean, m2, n, w[:C], w[C:])
        count += n


@device_function
def moments(values):
    """Mean and biased variance of values (N, S) in float64, which overflow only where they must."""
    N, S = values.shape
    count = float(N * S)
    # A quarter of each value, so that no difference overflows.
    center = 0.25 * np.float64(values[0, 0])
    center = center if abs(center) < np.inf else 0.0
    for _ in range(2):
        if abs(center) < np.inf:
            step = 0.0
            for n in range(N):
                for s in range(S):
                    step += 0.25 * np.float64(values[n, s]) / count - center / count
            center += step
    unit = 0.25 * np.sqrt(count)
    spread = 0.0
    for n in range(N):
        for s in range(S):
            d = (0.25 * np.float64(values[n, s]) - center) / unit
            spread += d * d
    return 4.0 * center, spread


@device_function
def invert(var, eps, inv_std):
    """Write 1 / sqrt(var + eps), per channel, in float64 whatever the type of var."""
    for j in range(var.size):
        inv_std[j] = 1.0 / np.sqrt(np.float64(var[j]) + eps)


@device_function
def forward_affine(gamma, beta, mean, inv_std, narrow):
    """Write shift, scale, offset (3 * C,) with y = (x - shift) * scale + offset."""
    C = mean.size
    for j in range(C):
        scale = inv_std[j]
        if gamma.size > 0:
            scale *= gamma[j]
        narrow[j] = mean[j]
        offset = (np.float64(narrow[j]) - np.float64(mean[j])) * scale
        if beta.size > 0:
            offset += beta[j]
        narrow[C + j] = scale
        narrow[2 * C + j] = offset


@device_function
def sum_parts(wide, parts, C):
    """Add the backward sums of parts 1.. to those of part 0, first to last."""
    for part in range(1, parts):
        for j in range(2 * C):
            wide[j] += wide[2 * C * part + j]


@device_function
def backward_affine(gamma, mean, inv_std, count, fixed, wide, narrow, dgamma, dbeta):
    """From the sums in wide: dgamma and dbeta; write shift, a, b, d (4 * C,)."""
    C = mean.size
    for j in range(C):
        rest = mean[j] - np.float64(narrow[j])
        sum_g = wide[j]
        # Beside an infinite sum the rest is nothing, and 0 * Inf would be NaN.
        offset = rest * sum_g if abs(sum_g) < np.inf else 0.0
        sum_g_x_hat = (wide[C + j] - offset) * inv_std[j]
        a = inv_std[j]
        if gamma.size > 0:
            a *= gamma[j]
        b = 0.0 if fixed else -inv_std[j] * (sum_g_x_hat / count)
        d = 0.0 if fixed else -sum_g / count
        narrow[C + j] = a
        narrow[2 * C + j] = b
        narrow[3 * C + j] = d - b * rest
        dgamma[j] = sum_g_x_hat
        dbeta[j] = sum_g
