"""Batch normalization of planes (N, C, S) on the CPU: the loops of `batchnorm_cpu`.

A slab is a group of channels that fits the cache whole; a unit is a part of N and S, all channels.
"""

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ._channels_cpu import (
    ELEMENTS_PER_BLOCK,
    FAR,
    MAX_BLOCKS,
    backward_affine,
    forward_affine,
    from_behind,
    invert,
    merge_parts,
    moments,
    pieces_of,
    sum_parts,
)
from ._jit import Kernel, bounds, device_function, loop, same
from ._vector import sum_masked_products, sum_products, sum_squares

ELEMENTS_PER_RUN = 1024
ELEMENTS_IN_SHIFT = 16
# Fewer elements of a gradient are summed in float64: there are too few errors to average out.
FEW_ELEMENTS = 1024
# Channels of at most this size are read from memory once for both passes.
CHANNEL_BYTES = 3 << 19
# Groups of them may be larger: they stay in a core's own cache or its share of the common one.
SLAB_BYTES = 1 << 21
# Shorter pieces of consecutive memory cost more than a second reading from the common cache; and
# from memory, where so many bytes do not fit a cache.
SHORTEST_STREAM, SHORTEST_FROM_MEMORY, FROM_MEMORY = 24_000, 4096, 1 << 26


@register_jitable
def grid_of_planes(shape):
    """Cut planes (N, C, S) along N first, then S: (n_parts, s_parts)."""
    N, C, S = shape
    units = max(1, min(N * C * S // ELEMENTS_PER_BLOCK, MAX_BLOCKS))
    n_parts = min(N, units)
    return n_parts, max(1, min(S // ELEMENTS_PER_RUN, units // n_parts))


@register_jitable
def slabs_of_channels(x, arrays, threads):
    """How many groups of channels keep `arrays` like x in cache, one at a time; 0 if none can.

    Whether there are groups decides on bits, how many there are does not.
    """
    N, C, S = x.shape
    channel = N * S * x.itemsize * arrays
    if channel > CHANNEL_BYTES or C == 1:
        return 0
    most = CHANNEL_BYTES // channel
    shortest = SHORTEST_STREAM if C * channel < FROM_MEMORY else SHORTEST_FROM_MEMORY
    if most < C and most * S * x.itemsize < shortest:
        return 0
    slabs = -(-C // (SLAB_BYTES // channel))
    # As many for every thread.
    return min(C, -(-slabs // threads) * threads)


@device_function
def center_of(plane, s0, s1):
    """Return a value near the mean of plane[s0:s1]: exactly it where all are the same."""
    head = plane[s0]
    samples = min(ELEMENTS_IN_SHIFT, s1 - s0)
    step = (s1 - s0) // samples
    total = plane.dtype.type(0)
    for i in range(samples):
        total += plane[s0 + i * step] - head
    center = head + total / plane.dtype.type(samples)
    return center if abs(center) < np.inf else plane.dtype.type(0)


@device_function
def _sum_planes(x, n0, n1, c0, c1, s0, s1, shift, total, square):
    """Sums of x - shift and of its square over x[n0:n1, c, s0:s1], for channels c0..c1."""
    for j in range(c1 - c0):
        total[j] = 0.0
        square[j] = 0.0
    for n in range(n0, n1):
        for j in range(c1 - c0):
            sums = sum_squares(x[n, c0 + j], s0, s1, np.float64(shift[j]))
            total[j] += sums[0]
            square[j] += sums[1]


@device_function
def stats_planes(x, n0, n1, c0, c1, s0, s1, shift, mean, m2):
    """Write mean and M2 (sum of squared deviations) of x[n0:n1, c, s0:s1] for channels c0..c1.

    Entry c - c0 of shift, mean and m2 belongs to channel c.
    """
    count = float((n1 - n0) * (s1 - s0))
    for j in range(c1 - c0):
        shift[j] = center_of(x[n0, c0 + j], s0, s1)
    # The sums, until they are made mean and M2.
    total, square = mean, m2
    _sum_planes(x, n0, n1, c0, c1, s0, s1, shift, total, square)
    for j in range(c1 - c0):
        # A shift far from the mean, of outliers or a margin, has cost digits: sum about the mean.
        if FAR * (square[j] - total[j] * total[j] / count) < square[j]:
            shift[j] += total[j] / count
            own = slice(j, j + 1)
            c = c0 + j
            _sum_planes(x, n0, n1, c, c + 1, s0, s1, shift[own], total[own], square[own])
        offset = total[j] / count
        deviation = square[j] - total[j] * offset
        mean[j] = shift[j] + offset
        m2[j] = 0.0 if deviation < 0.0 else deviation


@device_function
def variances_planes(x, c0, mean, m2):
    """Turn M2 of channels from c0 on into the biased variance, as `variances_rows` does."""
    N, _, S = x.shape
    for j in range(mean.size):
        m2[j] /= N * S
        if not m2[j] < np.inf:
            mean[j], m2[j] = moments(x[:, c0 + j])


@device_function
def _stretch(start, stop, S):
    """End of the elements from `start` on to take at once, and the length of their planes.

    They are a piece of one plane, or whole planes as far as they go.
    """
    s0 = start % S
    if s0 or stop - start < S:
        end = min(start + S - s0, stop)
        return end, end - start
    return stop - stop % S, S


@loop
def _normalize(in_place, x, residual, relu, narrow, c, y):
    channels = narrow.size // 3
    zero = x.dtype.type(0)
    added = residual.size > 0
    for p in range(y.shape[0]):
        shift, scale, offset = narrow[c], narrow[channels + c], narrow[2 * channels + c]
        target = y[p]
        source = target if in_place else x[p]
        # What is always there can be read without a condition, so that the loop vectorizes.
        other = residual[p] if added else source
        for i in range(y.shape[1]):
            value = (source[i] - shift) * scale + offset
            if added:
                value += other[i]
            target[i] = zero if relu & (value < zero) else value
        c = c + 1 if c + 1 < channels else 0


@device_function
def normalize_planes(x, residual, relu, narrow, c0, y, start, stop):
    """Normalize elements start..stop of x in C order; narrow (3 * channels,) begins at c0."""
    _, C, S = x.shape
    sources, results = x.reshape(x.size), y.reshape(y.size)
    others = residual.reshape(residual.size)
    while start < stop:
        end, width = _stretch(start, stop, S)
        source = sources[start:end].reshape(-1, width)
        other = others[start:end].reshape(-1, width)
        result = results[start:end].reshape(-1, width)
        c = start // S % C - c0
        if same(result, source):
            _normalize(True, source, other, relu, narrow, c, result)
        else:
            _normalize(False, source, other, relu, narrow, c, result)
        start = end


@device_function
def unit(u, grid, shape):
    """Ranges of N and S for unit `u` of the grid (n_parts, s_parts)."""
    n0, n1 = bounds(u // grid[1], grid[0], shape[0])
    s0, s1 = bounds(u % grid[1], grid[1], shape[2])
    return n0, n1, s0, s1


@register_jitable
def scratch_of_train_planes(C, grid):
    """Sizes of `wide` and `narrow` for `train_planes`: each unit its own, then shift to offset."""
    units = grid[0] * grid[1]
    return 4 * C * units, 3 * C * units


@Kernel
def train_planes(
    x, residual, gamma, beta, eps, relu, threads, grid, y, mean, var, inv_std, wide, narrow
):
    """Training forward: x, y (N, C, S); mean, var, inv_std (C,) in float64."""
    N, C, S = x.shape
    units = grid[0] * grid[1]
    for t in prange(threads):
        start, stop = bounds(t, threads, units)
        for u in range(start, stop):
            n0, n1, s0, s1 = unit(u, grid, x.shape)
            own = wide[4 * C * u : 4 * C * u + 2 * C]
            shift = narrow[3 * C * u : 3 * C * u + C]
            stats_planes(x, n0, n1, 0, C, s0, s1, shift, own[:C], own[C:])
    merge_parts(wide, N, grid[0], S, grid[1], mean, var)
    variances_planes(x, 0, mean, var)
    invert(var, eps, inv_std)
    forward_affine(gamma, beta, mean, inv_std, narrow)
    for t in prange(threads):
        start, stop = bounds(t, threads, x.size)
        pieces = pieces_of((stop - start) * x.itemsize)
        for k in range(pieces):
            first, last = from_behind(k, pieces, start, stop)
            normalize_planes(x, residual, relu, narrow[: 3 * C], 0, y, first, last)


@register_jitable
def scratch_of_train_slabs(C):
    """Sizes of `wide`, which there is none of, and `narrow` for `train_slabs`."""
    return 0, 3 * C


@Kernel
def train_slabs(x, residual, gamma, beta, eps, relu, threads, slabs, y, mean, var, inv_std, narrow):
    """Training forward by groups of channels that stay in cache between their two passes."""
    N, C, S = x.shape
    for t in prange(threads):
        start, stop = bounds(t, threads, slabs)
        for u in range(start, stop):
            c0, c1 = bounds(u, slabs, C)
            own = narrow[3 * c0 : 3 * c1]
            stats_planes(x, 0, N, c0, c1, 0, S, own, mean[c0:c1], var[c0:c1])
            variances_planes(x, c0, mean[c0:c1], var[c0:c1])
            invert(var[c0:c1], eps, inv_std[c0:c1])
            forward_affine(gamma[c0:c1], beta[c0:c1], mean[c0:c1], inv_std[c0:c1], own)
            for n in range(N):
                first, last = (n * C + c0) * S, (n * C + c1) * S
                normalize_planes(x, residual, relu, own, c0, y, first, last)


@Kernel
def infer_planes(x, residual, gamma, beta, mean, var, eps, relu, threads, y, wide, narrow):
    """Inference forward: x, y (N, C, S)."""
    invert(var, eps, wide)
    forward_affine(gamma, beta, mean, wide, narrow)
    C = x.shape[1]
    for t in prange(threads):
        first, last = bounds(t, threads, x.size)
        normalize_planes(x, residual, relu, narrow[: 3 * C], 0, y, first, last)


@device_function
def _sum_products_planes(dy, x, y, n0, n1, c0, c1, s0, s1, shift, zero, wide):
    """Sums of g and of g * (x - shift), as `_sum_planes` computes them."""
    channels = c1 - c0
    for j in range(2 * channels):
        wide[j] = 0.0
    for n in range(n0, n1):
        for j in range(channels):
            c = c0 + j
            gradient, plane = dy[n, c], x[n, c]
            s = s0
            while s < s1:
                end = min(s + ELEMENTS_PER_RUN, s1)
                center = shift[j] + zero
                if y.size > 0:
                    total, product = sum_masked_products(gradient, plane, y[n, c], s, end, center)
                else:
                    total, product = sum_products(gradient, plane, s, end, center)
                wide[j] += total
                wide[channels + j] += product
                s = end


@device_function
def _backward_sums_planes(dy, x, y, n0, n1, c0, c1, s0, s1, shift, wide):
    """Write sum(g) and sum(g * (x - shift)) for channels c0..c1 to wide (2 * (c1 - c0),).

    Entry c - c0 of shift and of both halves of wide belongs to channel c.
    """
    if (n1 - n0) * (s1 - s0) < FEW_ELEMENTS:
        _sum_products_planes(dy, x, y, n0, n1, c0, c1, s0, s1, shift, 0.0, wide)
    else:
        zero = x.dtype.type(0)
        _sum_products_planes(dy, x, y, n0, n1, c0, c1, s0, s1, shift, zero, wide)


@loop
def _input_gradient(in_place, dy, x, y, fixed, narrow, c, dx):
    channels = narrow.size // 4
    zero = x.dtype.type(0)
    masked = y.size > 0
    for p in range(dx.shape[0]):
        shift, a = narrow[c], narrow[channels + c]
        b, d = narrow[2 * channels + c], narrow[3 * channels + c]
        target = dx[p]
        gradient = target if in_place else dy[p]
        source = x[p]
        output = y[p] if masked else source
        for i in range(dx.shape[1]):
            g = a * gradient[i] if fixed else gradient[i]
            if masked:
                g = g if output[i] > zero else zero
            if not fixed:
                g = a * (g + (b * (source[i] - shift) + d))
            target[i] = g
        c = c + 1 if c + 1 < channels else 0


@device_function
def _input_gradient_planes(dy, x, y, fixed, narrow, c0, dx, start, stop):
    """Write elements start..stop of dx in C order; narrow (4 * channels,) begins at c0."""
    _, C, S = x.shape
    gradients, sources = dy.reshape(dy.size), x.reshape(x.size)
    outputs, results = y.reshape(y.size), dx.reshape(dx.size)
    while start < stop:
        end, width = _stretch(start, stop, S)
        gradient = gradients[start:end].reshape(-1, width)
        source = sources[start:end].reshape(-1, width)
        output = outputs[start:end].reshape(-1, width)
        result = results[start:end].reshape(-1, width)
        c = start // S % C - c0
        if same(result, gradient):
            _input_gradient(True, gradient, source, output, fixed, narrow, c, result)
        else:
            _input_gradient(False, gradient, source, output, fixed, narrow, c, result)
        start = end


@register_jitable
def scratch_of_backward_planes(C, grid):
    """Sizes of `wide` and `narrow` for `backward_planes`."""
    return 2 * C * grid[0] * grid[1], 4 * C


@Kernel
def backward_planes(
    dy, x, y, gamma, mean, inv_std, fixed, threads, grid, dx, dgamma, dbeta, wide, narrow
):
    """Backward: dy, x, dx (N, C, S); dgamma, dbeta (C,)."""
    N, C, S = x.shape
    units = grid[0] * grid[1]
    for j in range(C):
        narrow[j] = mean[j]
    for t in prange(threads):
        start, stop = bounds(t, threads, units)
        for u in range(start, stop):
            n0, n1, s0, s1 = unit(u, grid, x.shape)
            own = wide[2 * C * u : 2 * C * (u + 1)]
            _backward_sums_planes(dy, x, y, n0, n1, 0, C, s0, s1, narrow, own)
    sum_parts(wide, units, C)
    backward_affine(gamma, mean, inv_std, N * S, fixed, wide, narrow, dgamma, dbeta)
    for t in prange(threads):
        start, stop = bounds(t, threads, x.size)
        pieces = pieces_of((stop - start) * x.itemsize)
        for k in range(pieces):
            first, last = from_behind(k, pieces, start, stop)
            _input_gradient_planes(dy, x, y, fixed, narrow[: 4 * C], 0, dx, first, last)


@register_jitable
def scratch_of_backward_slabs(C):
    """Sizes of `wide` and `narrow` for `backward_slabs`."""
    return 2 * C, 4 * C


@Kernel
def backward_slabs(
    dy, x, y, gamma, mean, inv_std, fixed, threads, slabs, dx, dgamma, dbeta, wide, narrow
):
    """Backward by groups of channels that stay in cache between their two passes."""
    N, C, S = x.shape
    for t in prange(threads):
        start, stop = bounds(t, threads, slabs)
        for u in range(start, stop):
            c0, c1 = bounds(u, slabs, C)
            sums, own = wide[2 * c0 : 2 * c1], narrow[4 * c0 : 4 * c1]
            for j in range(c1 - c0):
                own[j] = mean[c0 + j]
            _backward_sums_planes(dy, x, y, 0, N, c0, c1, 0, S, own, sums)
            backward_affine(
                gamma[c0:c1],
                mean[c0:c1],
                inv_std[c0:c1],
                N * S,
                fixed,
                sums,
                own,
                dgamma[c0:c1],
                dbeta[c0:c1],
            )
            for n in range(N):
                first, last = (n * C + c0) * S, (n * C + c1) * S
                _input_gradient_planes(dy, x, y, fixed, own, c0, dx, first, last)
