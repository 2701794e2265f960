"""Batch normalization of rows (M, C) on the CPU: the loops of `batchnorm_cpu`."""

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
    merge,
    merge_parts,
    moments,
    pieces_of,
    sum_parts,
)
from ._jit import Kernel, bounds, device_function, inlined_device_function, loop, same

# A block has so many rows at least, since merging costs C per block.
ROWS_PER_BLOCK = 128
ROWS_PER_RUN = 256
# Sums read several strands of consecutive rows side by side: the processor foresees long streams.
FORWARD_STRANDS = 8
BACKWARD_STRANDS = 4
# Products of the backward pass go into float64 sums after as many turns.
TURNS_PER_SUM = 8
# Fewer rows are summed in float64: there are too few errors to average out.
FEW_ROWS = 64


@register_jitable
def blocks_of_rows(M, C):
    """How many blocks rows (M, C) are cut into."""
    most = max(M // ROWS_PER_BLOCK, min(M // 8, 8))
    return max(1, min(M * C // ELEMENTS_PER_BLOCK, MAX_BLOCKS, most))


@device_function
def _center_rows(x, first, last, shift):
    """Write a value near the mean of the first rows to shift (C,): that itself if constant."""
    C = x.shape[1]
    eighth = x.dtype.type(0.125)
    zero = x.dtype.type(0)
    end = last - 1
    x0 = x[first]
    x1 = x[min(first + 1, end)]
    x2 = x[min(first + 2, end)]
    x3 = x[min(first + 3, end)]
    x4 = x[min(first + 4, end)]
    x5 = x[min(first + 5, end)]
    x6 = x[min(first + 6, end)]
    x7 = x[min(first + 7, end)]
    for j in range(C):
        head = x0[j]
        total = (
            ((x1[j] - head) + (x2[j] - head))
            + ((x3[j] - head) + (x4[j] - head))
            + ((x5[j] - head) + (x6[j] - head))
            + (x7[j] - head)
        )
        center = head + total * eighth
        shift[j] = center if abs(center) < np.inf else zero


@device_function
def _sum_rows(x, first, last, shift, zero, total, square):
    """Sums of x - shift and of its square over rows first..last, per column.

    Eight strands at a time in the type of `zero`, and in that of total and square from there up.
    """
    C = x.shape[1]
    for j in range(C):
        total[j] = 0
        square[j] = 0
    strand = (last - first) // FORWARD_STRANDS
    for row in range(first, first + strand):
        x0 = x[row]
        x1 = x[row + strand]
        x2 = x[row + 2 * strand]
        x3 = x[row + 3 * strand]
        x4 = x[row + 4 * strand]
        x5 = x[row + 5 * strand]
        x6 = x[row + 6 * strand]
        x7 = x[row + 7 * strand]
        for j in range(C):
            center = shift[j] + zero
            d0 = x0[j] - center
            d1 = x1[j] - center
            d2 = x2[j] - center
            d3 = x3[j] - center
            d4 = x4[j] - center
            d5 = x5[j] - center
            d6 = x6[j] - center
            d7 = x7[j] - center
            total[j] += ((d0 + d1) + (d2 + d3)) + ((d4 + d5) + (d6 + d7))
            square[j] += ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + (
                (d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7)
            )
    for row in range(first + FORWARD_STRANDS * strand, last):
        x0 = x[row]
        for j in range(C):
            d0 = x0[j] - (shift[j] + zero)
            total[j] += d0
            square[j] += d0 * d0


@device_function
def _sum_again(x, first, last, shift, mean, m2):
    """Sum about the mean, in float64, where a shift far from it, an outlier, has cost digits."""
    for j in range(mean.size):
        distance = mean[j] - shift[j]
        if m2[j] * (FAR - 1.0) < distance * distance * (last - first):
            m2[j] = 0.0
            for row in range(first, last):
                d = x[row, j] - mean[j]
                m2[j] += d * d


@device_function
def stats_rows(x, first, last, shift, wide):
    """Write mean and M2 (sum of squared deviations) of rows first..last to wide[: 2 * C]."""
    C = x.shape[1]
    mean, m2 = wide[:C], wide[C : 2 * C]
    run_mean, run_m2 = wide[2 * C : 3 * C], wide[3 * C : 4 * C]
    count = 0.0
    row = first
    while row < last:
        end = min(row + ROWS_PER_RUN, last)
        _center_rows(x, row, end, shift)
        # The sums, until they are made mean and M2.
        total, square = run_mean, run_m2
        if x.shape[0] < FEW_ROWS:
            _sum_rows(x, row, end, shift, 0.0, total, square)
        else:
            _sum_rows(x, row, end, shift, x.dtype.type(0), total, square)
        n = float(end - row)
        far = False
        for j in range(C):
            offset = total[j] / n
            deviation = square[j] - total[j] * offset
            run_mean[j] = shift[j] + offset
            far = far | (FAR * deviation < square[j])
            run_m2[j] = 0.0 if deviation < 0.0 else deviation
        if far:
            _sum_again(x, row, end, shift, run_mean, run_m2)
        if row == first:
            for j in range(C):
                mean[j] = run_mean[j]
                m2[j] = run_m2[j]
        else:
            merge(count, mean, m2, n, run_mean, run_m2)
        count += n
        row = end


@device_function
def variances_rows(x, mean, m2):
    """Turn M2 into the biased variance, in place; sum again what overflowed or met a NaN or Inf."""
    M, C = x.shape
    for j in range(C):
        m2[j] /= M
    for j in range(C):
        if not m2[j] < np.inf:
            mean[j], m2[j] = moments(x[:, j : j + 1])


@loop
def _normalize(in_place, x, residual, relu, narrow, y, first, last):
    C = x.shape[1]
    zero = x.dtype.type(0)
    shift, scale, offset = narrow[:C], narrow[C : 2 * C], narrow[2 * C : 3 * C]
    added = residual.size > 0
    for row in range(first, last):
        target = y[row]
        source = target if in_place else x[row]
        # What is always there can be read without a condition, so that the loop vectorizes.
        other = residual[row] if added else source
        for j in range(C):
            value = (source[j] - shift[j]) * scale[j] + offset[j]
            if added:
                value += other[j]
            target[j] = zero if relu & (value < zero) else value


@inlined_device_function
def normalize_rows(x, residual, relu, narrow, y, first, last):
    """Normalize rows first..last."""
    if same(y, x):
        _normalize(True, x, residual, relu, narrow, y, first, last)
    else:
        _normalize(False, x, residual, relu, narrow, y, first, last)


@register_jitable
def scratch_of_train_rows(C, blocks):
    """Sizes of `wide` and `narrow` for `train_rows`: each block its own, then shift to offset."""
    return 4 * C * blocks, 3 * C * blocks


@Kernel
def train_rows(
    x, residual, gamma, beta, eps, relu, threads, blocks, y, mean, var, inv_std, wide, narrow
):
    """Training forward: x, y (M, C); mean, var, inv_std (C,) in float64."""
    M, C = x.shape
    for t in prange(threads):
        start, stop = bounds(t, threads, blocks)
        for b in range(start, stop):
            first, last = bounds(b, blocks, M)
            stats_rows(
                x,
                first,
                last,
                narrow[C * b : C * (b + 1)],
                wide[4 * C * b : 4 * C * (b + 1)],
            )
    merge_parts(wide, M, blocks, 1, 1, mean, var)
    variances_rows(x, mean, var)
    invert(var, eps, inv_std)
    forward_affine(gamma, beta, mean, inv_std, narrow)
    for t in prange(threads):
        start, stop = bounds(t, threads, M)
        pieces = pieces_of((stop - start) * C * x.itemsize)
        for k in range(pieces):
            first, last = from_behind(k, pieces, start, stop)
            normalize_rows(x, residual, relu, narrow, y, first, last)


@Kernel
def infer_rows(x, residual, gamma, beta, mean, var, eps, relu, threads, y, wide, narrow):
    """Inference forward: x, y (M, C)."""
    invert(var, eps, wide)
    forward_affine(gamma, beta, mean, wide, narrow)
    for t in prange(threads):
        first, last = bounds(t, threads, x.shape[0])
        normalize_rows(x, residual, relu, narrow, y, first, last)


@device_function
def _backward_sums_rows(dy, x, y, first, last, shift, narrow, wide):
    """Write sum(g) and sum(g * (x - shift)) of rows first..last to wide (2 * C,)."""
    C = x.shape[1]
    zero = x.dtype.type(0)
    total, product = narrow[:C], narrow[C : 2 * C]
    masked = y.size > 0
    # Without a mask dy stands in for it: what is always there can be read without a condition.
    mask = y if masked else dy
    for j in range(2 * C):
        wide[j] = 0.0
    strand = (last - first) // BACKWARD_STRANDS
    for start in range(first, first + strand, TURNS_PER_SUM):
        for j in range(C):
            total[j] = 0
            product[j] = 0
        for row in range(start, min(start + TURNS_PER_SUM, first + strand)):
            x0, dy0, y0 = x[row], dy[row], mask[row]
            x1, dy1, y1 = x[row + strand], dy[row + strand], mask[row + strand]
            x2, dy2, y2 = x[row + 2 * strand], dy[row + 2 * strand], mask[row + 2 * strand]
            x3, dy3, y3 = x[row + 3 * strand], dy[row + 3 * strand], mask[row + 3 * strand]
            for j in range(C):
                g0, g1, g2, g3 = dy0[j], dy1[j], dy2[j], dy3[j]
                if masked:
                    g0 = g0 if y0[j] > zero else zero
                    g1 = g1 if y1[j] > zero else zero
                    g2 = g2 if y2[j] > zero else zero
                    g3 = g3 if y3[j] > zero else zero
                total[j] += (g0 + g1) + (g2 + g3)
                product[j] += (g0 * (x0[j] - shift[j]) + g1 * (x1[j] - shift[j])) + (
                    g2 * (x2[j] - shift[j]) + g3 * (x3[j] - shift[j])
                )
        for j in range(C):
            wide[j] += total[j]
            wide[C + j] += product[j]
    for row in range(first + BACKWARD_STRANDS * strand, last):
        x0, dy0, y0 = x[row], dy[row], mask[row]
        for j in range(C):
            g = dy0[j]
            if masked:
                g = g if y0[j] > zero else zero
            wide[j] += g
            wide[C + j] += g * (x0[j] - shift[j])


@loop
def _input_gradient(in_place, dy, x, y, fixed, narrow, dx, first, last):
    C = x.shape[1]
    zero = x.dtype.type(0)
    shift, a, b, d = narrow[:C], narrow[C : 2 * C], narrow[2 * C : 3 * C], narrow[3 * C : 4 * C]
    masked = y.size > 0
    for row in range(first, last):
        target = dx[row]
        gradient = target if in_place else dy[row]
        source = x[row]
        output = y[row] if masked else source
        for j in range(C):
            g = a[j] * gradient[j] if fixed else gradient[j]
            if masked:
                g = g if output[j] > zero else zero
            if not fixed:
                g = a[j] * (g + (b[j] * (source[j] - shift[j]) + d[j]))
            target[j] = g


@device_function
def _input_gradient_rows(dy, x, y, fixed, narrow, dx, first, last):
    """Write dx of rows first..last."""
    if same(dx, dy):
        _input_gradient(True, dy, x, y, fixed, narrow, dx, first, last)
    else:
        _input_gradient(False, dy, x, y, fixed, narrow, dx, first, last)


@register_jitable
def scratch_of_backward_rows(C, blocks):
    """Sizes of `wide` and `narrow` for `backward_rows`: shift, a, b, d, then each block its own."""
    return 2 * C * blocks, (4 + 2 * blocks) * C


@Kernel
def backward_rows(
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
    sum_parts(wide, blocks, C)
    backward_affine(gamma, mean, inv_std, M, fixed, wide, narrow, dgamma, dbeta)
    for t in prange(threads):
        start, stop = bounds(t, threads, M)
        pieces = pieces_of((stop - start) * C * x.itemsize)
        for k in range(pieces):
            first, last = from_behind(k, pieces, start, stop)
            _input_gradient_rows(dy, x, y, fixed, narrow, dx, first, last)
