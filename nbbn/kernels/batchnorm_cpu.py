"""Batch normalization on the CPU, forward and backward, for `(M, C)` rows and `(N, C, S)` planes.

Training forward: one pass for the statistics, one that normalizes. Statistics are sums shifted by a
value from the data, in the array's own precision over a short run (128 rows, or 1024 elements of a
plane) and in float64 from there up: blocks merge by Chan's formula in an order that the shape alone
fixes. Hence the same bits for every number of threads.

Normalizing computes `(x - shift) * scale + offset`, where `shift` is the mean rounded to x's type
and the rest of the mean goes into `offset`: no cancellation even for |mean| >> std.

Backward: a pass for sum(g) and sum(g * (x - shift)), one for `dx = a * (g + b * (x - shift) + d)`.
With a ReLU behind the normalization, g is dy where the forward's output y is positive, else 0.

The second pass of each thread walks its blocks backwards: what was read last is still in cache.
Planes go by slabs, groups of channels that fit the cache whole, wherever such groups exist: one
region, no merging, and memory is read once for both passes.
An empty array stands for "not given" in residual, gamma, beta and y.
"""

import numpy as np
from numba import prange
from numba.extending import register_jitable

from ._jit import Kernel, SerialKernel, bounds, device_function, scratch, workers
from ._vector import sum_masked_products, sum_products, sum_squares

ROWS_PER_RUN = 128
ELEMENTS_PER_RUN = 1024
ELEMENTS_IN_SHIFT = 16
ELEMENTS_PER_BLOCK = 32_768
MAX_BLOCKS = 64
# Groups of channels of at most this size are read from memory once for both passes.
SLAB_BYTES = 3 << 19
# Shorter pieces of consecutive memory cost more than the second reading.
SHORTEST_STREAM = 4096


# ---------------------------------------------------------------- kernels: what both layouts share


@device_function
def _merge(count, mean, m2, other_count, other_mean, other_m2):
    """Chan's formula: fold another sample's (count, mean, M2) into mean and m2, per channel."""
    weight = other_count / (count + other_count)
    for j in range(mean.size):
        delta = other_mean[j] - mean[j]
        mean[j] += delta * weight
        m2[j] += other_m2[j] + delta * delta * count * weight


@device_function
def _merge_parts(wide, N, n_parts, S, s_parts, mean, m2):
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
            _merge(count, mean, m2, n, w[:C], w[C:])
        count += n


@device_function
def _invert(var, eps, inv_std):
    """Write 1 / sqrt(var + eps), per channel, in float64 whatever the type of var."""
    for j in range(var.size):
        inv_std[j] = 1.0 / np.sqrt(np.float64(var[j]) + eps)


@device_function
def _finish(count, eps, var, inv_std):
    """Turn M2 into the biased variance, in place, and into 1 / sqrt(var + eps)."""
    for j in range(var.size):
        var[j] /= count
    _invert(var, eps, inv_std)


@device_function
def _affine(gamma, beta, mean, inv_std, narrow):
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
def _sum_parts(wide, parts, C):
    """Add the backward sums of parts 1.. to those of part 0, first to last."""
    for part in range(1, parts):
        for j in range(2 * C):
            wide[j] += wide[2 * C * part + j]


@device_function
def _backward_affine(gamma, mean, inv_std, count, fixed, wide, narrow, dgamma, dbeta):
    """From the sums in wide: dgamma and dbeta; write shift, a, b, d (4 * C,)."""
    C = mean.size
    for j in range(C):
        rest = mean[j] - np.float64(narrow[j])
        sum_g = wide[j]
        sum_g_x_hat = (wide[C + j] - rest * sum_g) * inv_std[j]
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


# ---------------------------------------------------------------- kernels: rows


@device_function
def _sum_rows(x, first, last, shift, total, square):
    """Sums of x - shift and of its square over rows first..last, per column."""
    C = x.shape[1]
    for j in range(C):
        total[j] = 0
        square[j] = 0
    row = first
    while row + 4 <= last:
        x0 = x[row]
        x1 = x[row + 1]
        x2 = x[row + 2]
        x3 = x[row + 3]
        for j in range(C):
            d0 = x0[j] - shift[j]
            d1 = x1[j] - shift[j]
            d2 = x2[j] - shift[j]
            d3 = x3[j] - shift[j]
            total[j] += (d0 + d1) + (d2 + d3)
            square[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
        row += 4
    while row < last:
        x0 = x[row]
        for j in range(C):
            d0 = x0[j] - shift[j]
            total[j] += d0
            square[j] += d0 * d0
        row += 1


@device_function
def _spread(x, first, last, column, center):
    """Sum of squared deviations from `center` over rows first..last of one column, in float64."""
    total = 0.0
    for row in range(first, last):
        d = x[row, column] - center
        total += d * d
    return total


@device_function
def _stats_rows(x, first, last, narrow, wide):
    """Write mean and M2 (sum of squared deviations) of rows first..last to wide[: 2 * C]."""
    C = x.shape[1]
    zero = x.dtype.type(0)
    shift, total, square = narrow[:C], narrow[C : 2 * C], narrow[2 * C : 3 * C]
    mean, m2 = wide[:C], wide[C : 2 * C]
    run_mean, run_m2 = wide[2 * C : 3 * C], wide[3 * C : 4 * C]
    count = 0.0
    row = first
    while row < last:
        end = min(row + ROWS_PER_RUN, last)
        head = x[row]
        for j in range(C):
            shift[j] = head[j] if abs(head[j]) < np.inf else zero
        _sum_rows(x, row, end, shift, total, square)
        n = float(end - row)
        for j in range(C):
            offset = np.float64(total[j]) / n
            deviation = np.float64(square[j]) - total[j] * offset
            run_mean[j] = shift[j] + offset
            run_m2[j] = 0.0 if deviation < 0.0 else deviation
        for j in range(C):
            # A shift far from the run's mean, an outlier, has cost digits: sum about the mean.
            if 64.0 * run_m2[j] < square[j]:
                run_m2[j] = _spread(x, row, end, j, run_mean[j])
        if row == first:
            for j in range(C):
                mean[j] = run_mean[j]
                m2[j] = run_m2[j]
        else:
            _merge(count, mean, m2, n, run_mean, run_m2)
        count += n
        row = end


@device_function
def _exact_columns(x, mean, m2):
    """Recompute, in float64, the columns whose sums overflowed or met a NaN or Inf."""
    M, C = x.shape
    for j in range(C):
        if not m2[j] < np.inf:
            center = 0.0
            for i in range(M):
                center += np.float64(x[i, j]) / M
            spread = 0.0
            for i in range(M):
                d = np.float64(x[i, j]) - center
                spread += d * d
            mean[j] = center
            m2[j] = spread


@device_function
def _normalize_rows(x, residual, relu, narrow, y, first, last):
    """Normalize rows first..last, last row first."""
    C = x.shape[1]
    zero = x.dtype.type(0)
    shift, scale, offset = narrow[:C], narrow[C : 2 * C], narrow[2 * C : 3 * C]
    for back in range(last - first):
        row = last - 1 - back
        source = x[row]
        target = y[row]
        if residual.size > 0:
            other = residual[row]
            for j in range(C):
                value = (source[j] - shift[j]) * scale[j] + offset[j] + other[j]
                target[j] = zero if relu & (value < zero) else value
        else:
            for j in range(C):
                value = (source[j] - shift[j]) * scale[j] + offset[j]
                target[j] = zero if relu & (value < zero) else value


@Kernel
def _train_rows(
    x, residual, gamma, beta, eps, relu, threads, blocks, y, mean, var, inv_std, wide, narrow
):
    """Training forward: x, y (M, C); mean, var, inv_std (C,) in float64."""
    M, C = x.shape
    for t in prange(threads):
        start, stop = bounds(t, threads, blocks)
        for b in range(start, stop):
            first, last = bounds(b, blocks, M)
            _stats_rows(
                x,
                first,
                last,
                narrow[3 * C * b : 3 * C * (b + 1)],
                wide[4 * C * b : 4 * C * (b + 1)],
            )
    _merge_parts(wide, M, blocks, 1, 1, mean, var)
    _exact_columns(x, mean, var)
    _finish(M, eps, var, inv_std)
    _affine(gamma, beta, mean, inv_std, narrow)
    for t in prange(threads):
        start, stop = bounds(t, threads, blocks)
        for back in range(stop - start):
            first, last = bounds(stop - 1 - back, blocks, M)
            _normalize_rows(x, residual, relu, narrow, y, first, last)


@Kernel
def _infer_rows(x, residual, gamma, beta, mean, var, eps, relu, threads, y, wide, narrow):
    """Inference forward: x, y (M, C)."""
    _invert(var, eps, wide)
    _affine(gamma, beta, mean, wide, narrow)
    for t in prange(threads):
        first, last = bounds(t, threads, x.shape[0])
        _normalize_rows(x, residual, relu, narrow, y, first, last)


@device_function
def _sum_products_rows(dy, x, y, first, last, shift, total, product):
    """Sums of g and of g * (x - shift) over rows first..last, per column."""
    C = x.shape[1]
    for j in range(C):
        total[j] = 0
        product[j] = 0
    row = first
    if y.size > 0:
        zero = x.dtype.type(0)
        while row + 4 <= last:
            x0 = x[row]
            x1 = x[row + 1]
            x2 = x[row + 2]
            x3 = x[row + 3]
            dy0 = dy[row]
            dy1 = dy[row + 1]
            dy2 = dy[row + 2]
            dy3 = dy[row + 3]
            y0 = y[row]
            y1 = y[row + 1]
            y2 = y[row + 2]
            y3 = y[row + 3]
            for j in range(C):
                # Read first, select then: a read under a condition does not vectorize.
                a0, a1, a2, a3 = dy0[j], dy1[j], dy2[j], dy3[j]
                b0 = a0 if y0[j] > zero else zero
                b1 = a1 if y1[j] > zero else zero
                b2 = a2 if y2[j] > zero else zero
                b3 = a3 if y3[j] > zero else zero
                total[j] += (b0 + b1) + (b2 + b3)
                product[j] += (b0 * (x0[j] - shift[j]) + b1 * (x1[j] - shift[j])) + (
                    b2 * (x2[j] - shift[j]) + b3 * (x3[j] - shift[j])
                )
            row += 4
        while row < last:
            x0 = x[row]
            dy0 = dy[row]
            y0 = y[row]
            for j in range(C):
                a0 = dy0[j]
                b0 = a0 if y0[j] > zero else zero
                total[j] += b0
                product[j] += b0 * (x0[j] - shift[j])
            row += 1
        return
    while row + 4 <= last:
        x0 = x[row]
        x1 = x[row + 1]
        x2 = x[row + 2]
        x3 = x[row + 3]
        g0 = dy[row]
        g1 = dy[row + 1]
        g2 = dy[row + 2]
        g3 = dy[row + 3]
        for j in range(C):
            total[j] += (g0[j] + g1[j]) + (g2[j] + g3[j])
            product[j] += (g0[j] * (x0[j] - shift[j]) + g1[j] * (x1[j] - shift[j])) + (
                g2[j] * (x2[j] - shift[j]) + g3[j] * (x3[j] - shift[j])
            )
        row += 4
    while row < last:
        x0 = x[row]
        g0 = dy[row]
        for j in range(C):
            total[j] += g0[j]
            product[j] += g0[j] * (x0[j] - shift[j])
        row += 1


@device_function
def _backward_sums_rows(dy, x, y, first, last, shift, narrow, wide):
    """Write sum(g) and sum(g * (x - shift)) of rows first..last to wide (2 * C,)."""
    C = x.shape[1]
    total, product = narrow[:C], narrow[C : 2 * C]
    for j in range(2 * C):
        wide[j] = 0.0
    row = first
    while row < last:
        end = min(row + ROWS_PER_RUN, last)
        _sum_products_rows(dy, x, y, row, end, shift, total, product)
        for j in range(C):
            wide[j] += total[j]
            wide[C + j] += product[j]
        row = end


@device_function
def _input_gradient_rows(dy, x, y, fixed, narrow, dx, first, last):
    """Write dx of rows first..last, last row first."""
    C = x.shape[1]
    zero = x.dtype.type(0)
    shift, a, b, d = narrow[:C], narrow[C : 2 * C], narrow[2 * C : 3 * C], narrow[3 * C : 4 * C]
    for back in range(last - first):
        row = last - 1 - back
        source = x[row]
        gradient = dy[row]
        target = dx[row]
        if y.size > 0:
            output = y[row]
            if fixed:
                for j in range(C):
                    g = a[j] * gradient[j]
                    target[j] = g if output[j] > zero else zero
            else:
                for j in range(C):
                    g = gradient[j]
                    g = g if output[j] > zero else zero
                    target[j] = a[j] * (g + (b[j] * (source[j] - shift[j]) + d[j]))
        elif fixed:
            for j in range(C):
                target[j] = a[j] * gradient[j]
        else:
            for j in range(C):
                target[j] = a[j] * (gradient[j] + (b[j] * (source[j] - shift[j]) + d[j]))


@Kernel
def _backward_rows(
    dy, x, y, gamma, mean, inv_std, fixed, threads, blocks, dx, dgamma, dbeta, wide, narrow
):
    """Backward: dy, x, dx (M, C); dgamma, dbeta (C,)."""
    M, C = x.shape
    for j in range(C):
        narrow[j] = mean[j]
    for t in prange(threads):
        start, stop = bounds(t, threads, blocks)
        for b in range(start, stop):
            first, last = bounds(b, blocks, M)
            own = narrow[4 * C + 2 * C * b : 4 * C + 2 * C * (b + 1)]
            _backward_sums_rows(
                dy, x, y, first, last, narrow[:C], own, wide[2 * C * b : 2 * C * (b + 1)]
            )
    _sum_parts(wide, blocks, C)
    _backward_affine(gamma, mean, inv_std, M, fixed, wide, narrow, dgamma, dbeta)
    for t in prange(threads):
        start, stop = bounds(t, threads, blocks)
        for back in range(stop - start):
            first, last = bounds(stop - 1 - back, blocks, M)
            _input_gradient_rows(dy, x, y, fixed, narrow, dx, first, last)


# ---------------------------------------------------------------- kernels: planes


@device_function
def _stats_planes(x, n0, n1, c0, c1, s0, s1, shift, mean, m2):
    """Write mean and M2 (sum of squared deviations) of x[n0:n1, c, s0:s1] for channels c0..c1.

    Entry c - c0 of shift, mean and m2 belongs to channel c.
    """
    zero = x.dtype.type(0)
    count = float((n1 - n0) * (s1 - s0))
    for n in range(n0, n1):
        for j in range(c1 - c0):
            plane = x[n, c0 + j]
            if n == n0:
                head = plane[s0 : min(s0 + ELEMENTS_IN_SHIFT, s1)]
                center = zero
                for i in range(head.size):
                    center += head[i]
                center /= head.size
                shift[j] = center if abs(center) < np.inf else zero
                mean[j] = 0.0
                m2[j] = 0.0
            s = s0
            while s < s1:
                end = min(s + ELEMENTS_PER_RUN, s1)
                total, square = sum_squares(plane, s, end, shift[j])
                mean[j] += total
                m2[j] += square
                s = end
    for j in range(c1 - c0):
        offset = mean[j] / count
        deviation = m2[j] - mean[j] * offset
        mean[j] = shift[j] + offset
        m2[j] = 0.0 if deviation < 0.0 else deviation


@device_function
def _exact_channels(x, c0, mean, m2):
    """Recompute, in float64, those channels from c0 whose sums overflowed or met a NaN or Inf."""
    N, _, S = x.shape
    for j in range(mean.size):
        if not m2[j] < np.inf:
            center = 0.0
            for n in range(N):
                for s in range(S):
                    center += np.float64(x[n, c0 + j, s]) / (N * S)
            spread = 0.0
            for n in range(N):
                for s in range(S):
                    d = np.float64(x[n, c0 + j, s]) - center
                    spread += d * d
            mean[j] = center
            m2[j] = spread


@device_function
def _normalize_planes(x, residual, relu, narrow, y, n0, n1, c0, c1, s0, s1):
    """Normalize x[n0:n1, c0:c1, s0:s1], last plane first; narrow (3 * channels,) begins at c0."""
    channels = narrow.size // 3
    zero = x.dtype.type(0)
    for n_back in range(n1 - n0):
        n = n1 - 1 - n_back
        for c_back in range(c1 - c0):
            j = c1 - c0 - 1 - c_back
            c = c0 + j
            shift, scale, offset = narrow[j], narrow[channels + j], narrow[2 * channels + j]
            source = x[n, c, s0:s1]
            target = y[n, c, s0:s1]
            if residual.size > 0:
                other = residual[n, c, s0:s1]
                for i in range(source.size):
                    value = (source[i] - shift) * scale + offset + other[i]
                    target[i] = zero if relu & (value < zero) else value
            else:
                for i in range(source.size):
                    value = (source[i] - shift) * scale + offset
                    target[i] = zero if relu & (value < zero) else value


@device_function
def _unit(u, grid, shape):
    """Ranges of N and S for unit `u` of the grid (n_parts, s_parts)."""
    n0, n1 = bounds(u // grid[1], grid[0], shape[0])
    s0, s1 = bounds(u % grid[1], grid[1], shape[2])
    return n0, n1, s0, s1


@Kernel
def _train_planes(
    x, residual, gamma, beta, eps, relu, threads, grid, y, mean, var, inv_std, wide, narrow
):
    """Training forward: x, y (N, C, S); mean, var, inv_std (C,) in float64."""
    N, C, S = x.shape
    units = grid[0] * grid[1]
    for t in prange(threads):
        start, stop = bounds(t, threads, units)
        for u in range(start, stop):
            n0, n1, s0, s1 = _unit(u, grid, x.shape)
            own = wide[4 * C * u : 4 * C * u + 2 * C]
            shift = narrow[3 * C * u : 3 * C * u + C]
            _stats_planes(x, n0, n1, 0, C, s0, s1, shift, own[:C], own[C:])
    _merge_parts(wide, N, grid[0], S, grid[1], mean, var)
    _exact_channels(x, 0, mean, var)
    _finish(N * S, eps, var, inv_std)
    _affine(gamma, beta, mean, inv_std, narrow)
    for t in prange(threads):
        start, stop = bounds(t, threads, units)
        for back in range(stop - start):
            n0, n1, s0, s1 = _unit(stop - 1 - back, grid, x.shape)
            _normalize_planes(x, residual, relu, narrow[: 3 * C], y, n0, n1, 0, C, s0, s1)


@Kernel
def _train_slabs(
    x, residual, gamma, beta, eps, relu, threads, slabs, y, mean, var, inv_std, narrow
):
    """Training forward by groups of channels that stay in cache between their two passes."""
    N, C, S = x.shape
    for t in prange(threads):
        start, stop = bounds(t, threads, slabs)
        for u in range(start, stop):
            c0, c1 = bounds(u, slabs, C)
            own = narrow[3 * c0 : 3 * c1]
            _stats_planes(x, 0, N, c0, c1, 0, S, own, mean[c0:c1], var[c0:c1])
            _exact_channels(x, c0, mean[c0:c1], var[c0:c1])
            _finish(N * S, eps, var[c0:c1], inv_std[c0:c1])
            _affine(gamma[c0:c1], beta[c0:c1], mean[c0:c1], inv_std[c0:c1], own)
            _normalize_planes(x, residual, relu, own, y, 0, N, c0, c1, 0, S)


@Kernel
def _infer_planes(x, residual, gamma, beta, mean, var, eps, relu, threads, grid, y, wide, narrow):
    """Inference forward: x, y (N, C, S)."""
    _invert(var, eps, wide)
    _affine(gamma, beta, mean, wide, narrow)
    C = x.shape[1]
    units = grid[0] * grid[1]
    for t in prange(threads):
        start, stop = bounds(t, threads, units)
        for u in range(start, stop):
            n0, n1, s0, s1 = _unit(u, grid, x.shape)
            _normalize_planes(x, residual, relu, narrow[: 3 * C], y, n0, n1, 0, C, s0, s1)


@device_function
def _backward_sums_planes(dy, x, y, n0, n1, c0, c1, s0, s1, shift, wide):
    """Write sum(g) and sum(g * (x - shift)) for channels c0..c1 to wide (2 * (c1 - c0),).

    Entry c - c0 of shift and of both halves of wide belongs to channel c.
    """
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
                if y.size > 0:
                    total, product = sum_masked_products(gradient, plane, y[n, c], s, end, shift[j])
                else:
                    total, product = sum_products(gradient, plane, s, end, shift[j])
                wide[j] += total
                wide[channels + j] += product
                s = end


@device_function
def _input_gradient_planes(dy, x, y, fixed, narrow, dx, n0, n1, c0, c1, s0, s1):
    """Write dx[n0:n1, c0:c1, s0:s1], last plane first; narrow (4 * channels,) begins at c0."""
    channels = narrow.size // 4
    zero = x.dtype.type(0)
    for n_back in range(n1 - n0):
        n = n1 - 1 - n_back
        for c_back in range(c1 - c0):
            j = c1 - c0 - 1 - c_back
            c = c0 + j
            shift, a = narrow[j], narrow[channels + j]
            b, d = narrow[2 * channels + j], narrow[3 * channels + j]
            source = x[n, c, s0:s1]
            gradient = dy[n, c, s0:s1]
            target = dx[n, c, s0:s1]
            if y.size > 0:
                output = y[n, c, s0:s1]
                if fixed:
                    for i in range(source.size):
                        g = a * gradient[i]
                        target[i] = g if output[i] > zero else zero
                else:
                    for i in range(source.size):
                        g = gradient[i]
                        g = g if output[i] > zero else zero
                        target[i] = a * (g + (b * (source[i] - shift) + d))
            elif fixed:
                for i in range(source.size):
                    target[i] = a * gradient[i]
            else:
                for i in range(source.size):
                    target[i] = a * (gradient[i] + (b * (source[i] - shift) + d))


@Kernel
def _backward_planes(
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
            n0, n1, s0, s1 = _unit(u, grid, x.shape)
            own = wide[2 * C * u : 2 * C * (u + 1)]
            _backward_sums_planes(dy, x, y, n0, n1, 0, C, s0, s1, narrow, own)
    _sum_parts(wide, units, C)
    _backward_affine(gamma, mean, inv_std, N * S, fixed, wide, narrow, dgamma, dbeta)
    for t in prange(threads):
        start, stop = bounds(t, threads, units)
        for back in range(stop - start):
            n0, n1, s0, s1 = _unit(stop - 1 - back, grid, x.shape)
            _input_gradient_planes(dy, x, y, fixed, narrow[: 4 * C], dx, n0, n1, 0, C, s0, s1)


@Kernel
def _backward_slabs(
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
            _backward_affine(
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
            _input_gradient_planes(dy, x, y, fixed, own, dx, 0, N, c0, c1, 0, S)


# ---------------------------------------------------------------- kernels: statistics


@SerialKernel
def _inverse_std(var, eps, inv_std):
    """inv_std = 1 / sqrt(var + eps); var, inv_std (C,)."""
    _invert(var, eps, inv_std)


@device_function
def _correction(count, unbiased):
    """Factor from the biased to the wanted variance."""
    return count / (count - 1.0) if unbiased else 1.0


@device_function
def _move_running(mean, var, count, momentum, unbiased, running_mean, running_var):
    """Move the running statistics (C,) towards the batch's by `momentum`, in place."""
    correction = _correction(count, unbiased)
    for j in range(mean.size):
        running_mean[j] += momentum * (mean[j] - running_mean[j])
        running_var[j] += momentum * (var[j] * correction - running_var[j])


@SerialKernel
def _update_running(mean, var, count, momentum, unbiased, running_mean, running_var):
    """Running-statistics update (C,), whatever the batch held."""
    _move_running(mean, var, count, momentum, unbiased, running_mean, running_var)


@SerialKernel
def _update_running_within(
    mean, var, count, momentum, unbiased, limit, running_mean, running_var, skipped
):
    """Running-statistics update (C,) where all is finite and within `limit`, else skipped (1,)."""
    correction = _correction(count, unbiased)
    inside = True
    for j in range(mean.size):
        # A NaN fails every comparison.
        inside &= abs(mean[j]) <= limit and var[j] * correction <= limit
    if inside:
        _move_running(mean, var, count, momentum, unbiased, running_mean, running_var)
    else:
        skipped[0] += 1


# ---------------------------------------------------------------- launchers


@register_jitable
def _blocks(M, C):
    """How many blocks rows (M, C) are cut into: of whole runs, since merging costs C per block."""
    most = max(M // ROWS_PER_RUN, min(M // 8, 8))
    return max(1, min(M * C // ELEMENTS_PER_BLOCK, MAX_BLOCKS, most))


@register_jitable
def _grid(shape):
    """Cut planes (N, C, S) along N first, then S: (n_parts, s_parts)."""
    N, C, S = shape
    units = max(1, min(N * C * S // ELEMENTS_PER_BLOCK, MAX_BLOCKS))
    n_parts = min(N, units)
    return n_parts, max(1, min(S // ELEMENTS_PER_RUN, units // n_parts))


@register_jitable
def _slabs(x, arrays):
    """How many groups of channels keep `arrays` like x in cache, one at a time; 0 if none can."""
    N, C, S = x.shape
    channel = N * S * x.itemsize * arrays
    if channel > SLAB_BYTES or C == 1:
        return 0
    most = SLAB_BYTES // channel
    if most < C and most * S * x.itemsize < SHORTEST_STREAM:
        return 0
    return min(C, max(-(-C // most), min(x.size // ELEMENTS_PER_BLOCK, MAX_BLOCKS)))


def train(x, residual, gamma, beta, eps, relu, y, mean, var, inv_std):
    """Normalize x with its own statistics; fills y, mean, var (biased) and inv_std."""
    threads = workers(x.size)
    C = x.shape[1]
    operands = (x, residual, gamma, beta, eps, relu, threads)
    results = (y, mean, var, inv_std)
    if x.ndim == 2:
        blocks = _blocks(*x.shape)
        wide, narrow = scratch(4 * C * blocks, 3 * C * blocks, x.dtype)
        _train_rows(threads, *operands, blocks, *results, wide, narrow)
    elif slabs := _slabs(x, 1):
        _train_slabs(threads, *operands, slabs, *results, scratch(0, 3 * C, x.dtype)[1])
    else:
        grid = _grid(x.shape)
        parts = grid[0] * grid[1]
        wide, narrow = scratch(4 * C * parts, 3 * C * parts, x.dtype)
        _train_planes(threads, *operands, grid, *results, wide, narrow)


def infer(x, residual, gamma, beta, mean, var, eps, relu, y):
    """Normalize x with the given statistics; fills y."""
    threads = workers(x.size)
    C = x.shape[1]
    wide, narrow = scratch(C, 3 * C, x.dtype)
    if x.ndim == 2:
        _infer_rows(
            threads, x, residual, gamma, beta, mean, var, eps, relu, threads, y, wide, narrow
        )
        return
    grid = _grid(x.shape)
    _infer_planes(
        threads, x, residual, gamma, beta, mean, var, eps, relu, threads, grid, y, wide, narrow
    )


def backward(dy, x, y, gamma, mean, inv_std, fixed, dx, dgamma, dbeta):
    """Gradients of `train`, or of `infer` where `fixed`."""
    threads = workers(x.size)
    C = x.shape[1]
    operands = (dy, x, y, gamma, mean, inv_std, fixed, threads)
    results = (dx, dgamma, dbeta)
    if x.ndim == 2:
        blocks = _blocks(*x.shape)
        wide, narrow = scratch(2 * C * blocks, (4 + 2 * blocks) * C, x.dtype)
        _backward_rows(threads, *operands, blocks, *results, wide, narrow)
    elif slabs := _slabs(x, 2 if y.size == 0 else 3):
        wide, narrow = scratch(2 * C, 4 * C, x.dtype)
        _backward_slabs(threads, *operands, slabs, *results, wide, narrow)
    else:
        grid = _grid(x.shape)
        wide, narrow = scratch(2 * C * grid[0] * grid[1], 4 * C, x.dtype)
        _backward_planes(threads, *operands, grid, *results, wide, narrow)


def inverse_std(var, eps, inv_std):
    """1 / sqrt(var + eps), per channel."""
    _inverse_std(var, eps, inv_std)


def update_running(mean, var, count, momentum, unbiased, running_mean, running_var):
    """Running-statistics update, in place; count and momentum may be arrays (), read now."""
    if count > 0:
        numbers = float(count), float(momentum), unbiased
        _update_running(mean, var, *numbers, running_mean, running_var)


def update_running_within(
    mean, var, count, momentum, unbiased, limit, running_mean, running_var, skipped
):
    """Running-statistics update that counts a batch beyond `limit` and leaves it out."""
    if count > 0:
        numbers = float(count), float(momentum), unbiased, limit
        _update_running_within(mean, var, *numbers, running_mean, running_var, skipped)
