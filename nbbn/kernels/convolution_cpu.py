"""Convolution of images on the CPU: a block of output rows at a time, unrolled, and one product.

Channels first are x (N, C, H, W), y (N, F, OH, OW) and w (F, C / G, kh, kw) for F filters in G
groups; channels last are x (N, H, W, C), y (N, OH, OW, F) and w (F, kh, kw, C), without groups. The
patches of a block, one for each output pixel, are copied into scratch in w's own order, so that the
output is a matrix product with w as it lies. The input gradient is the product with w transposed,
added back pixel by pixel; the weight gradient multiplies dy with the patches, and sums over images
in parts that follow from the shape. Products are BLAS calls as in `matmul_cpu`; they and the sums
over images are in the type of x. A single filter of a group is no product but a weighted sum.

`geometry` is (C, H, W, F, kh, kw, OH, OW), stride, padding, dilation, (G, last); stride, padding
and dilation are two numbers each, height before width. The padding is that in front.
"""

import functools

from numba import prange

from ._jit import Kernel, bounds, device_function, scratch, workers
from ._vector import sum_products, sum_squares
from .matmul_cpu import blas, one_thread, times

# Elements of a block's patches: about what the second cache of a core holds in float32.
_BLOCK = 1 << 18
# A product over fewer pixels would spend its time on packing the weights.
_FEWEST_PIXELS = 64
# Units of work for all threads together, where there is that much; and parts of the images whose
# weight gradients are summed apart.
_FEWEST_UNITS = _MOST_PARTS = 16
_ELEMENTS_PER_RUN = 1024

# ---------------------------------------------------------------- patches


@device_function
def _zero(array, first, last):
    for i in range(first, last):
        array[i] = 0


@device_function
def _hide(patches, at, s0, s1, q0, q1, OW):
    """Zero the columns outside of q0..q1 in the rows s0..s1."""
    if q0 > 0:
        for s in range(s0, s1):
            _zero(patches, at + s * OW, at + s * OW + q0)
    if q1 < OW:
        for s in range(s0, s1):
            _zero(patches, at + s * OW + q1, at + s * OW + OW)


@device_function
def _inside(shift, stride, size, count):
    """First and last + 1 of the `count` positions p for which p * stride + shift is in 0..size."""
    first = min(max(-shift + stride - 1, 0) // stride, count)
    return first, max(min((size - 1 - shift) // stride + 1, count), first)


@device_function
def _copy(x, start, stride, patches, at, count):
    source, target = x[start:], patches[at : at + count]
    if stride == 1:
        for q in range(target.size):
            target[q] = source[q]
    elif stride == 2:
        # A number that is known lets it load whole vectors.
        for q in range(target.size):
            target[q] = source[q * 2]
    else:
        for q in range(target.size):
            target[q] = source[q * stride]


@device_function
def _add(patches, at, count, dx, start, stride):
    source, target = patches[at : at + count], dx[start:]
    if stride == 1:
        for q in range(source.size):
            target[q] += source[q]
    else:
        for q in range(source.size):
            target[q * stride] += source[q]


@device_function
def _patches_first(x, start, channels, geometry, r0, r1, patches, back):
    """Write the patches (channels * kh * kw, pixels) of x from `start` on, for rows r0..r1.

    Or, with `back`, add them to x, where they come from; they are spoilt.
    """
    _, H, W, _, kh, kw, _, OW, sh, sw, ph, pw, dh, dw, _, _ = geometry
    P = (r1 - r0) * OW
    for k in range(channels * kh * kw):
        c, i, j = k // (kh * kw), k // kw % kh, k % kw
        at, plane = k * P, start + c * H * W
        top, left = r0 * sh + i * dh - ph, j * dw - pw
        q0, q1 = _inside(left, sw, W, OW)
        s0, s1 = _inside(top, sh, H, r1 - r0)
        if not back:
            _zero(patches, at, at + s0 * OW)
            _zero(patches, at + s1 * OW, at + P)
        if sh == sw == 1 and OW == W and s0 < s1:
            # The rows lie one behind the other in both, but for what the padding hides.
            first = max(s0 * W, -left - top * W)
            last = min(s1 * W, H * W - left - top * W)
            pixel = plane + top * W + left + first
            if back:
                _hide(patches, at, s0, s1, q0, q1, OW)
                _add(patches, at + first, last - first, x, pixel, 1)
            else:
                _copy(x, pixel, 1, patches, at + first, last - first)
                _hide(patches, at, s0, s1, q0, q1, OW)
            continue
        for s in range(s0, s1):
            row, pixel = at + s * OW, plane + (top + s * sh) * W + left + q0 * sw
            if back:
                _add(patches, row + q0, q1 - q0, x, pixel, sw)
            else:
                _zero(patches, row, row + q0)
                _copy(x, pixel, sw, patches, row + q0, q1 - q0)
                _zero(patches, row + q1, row + OW)


@device_function
def _patches_last(x, start, geometry, r0, r1, patches, back):
    """Write the patches (pixels, kh * kw * C) of the image of x at `start`, for rows r0..r1.

    Or, with `back`, add them to x, where they come from.
    """
    C, H, W, _, kh, kw, _, OW, sh, sw, ph, pw, dh, dw, _, _ = geometry
    for p in range((r1 - r0) * OW):
        top, left = (r0 + p // OW) * sh - ph, p % OW * sw - pw
        j0, j1 = _inside(left, dw, W, kw)
        # Pixels side by side lie one behind the other in both.
        run = max(j1 - j0, 1) if dw == 1 else 1
        for i in range(kh):
            at, h = (p * kh + i) * kw * C, top + i * dh
            if h < 0 or h >= H:
                if not back:
                    _zero(patches, at, at + kw * C)
                continue
            if not back:
                _zero(patches, at, at + j0 * C)
                _zero(patches, at + j1 * C, at + kw * C)
            for j in range(j0, j1, run):
                pixel = start + (h * W + left + j * dw) * C
                if back:
                    _add(patches, at + j * C, run * C, x, pixel, 1)
                else:
                    _copy(x, pixel, 1, patches, at + j * C, run * C)


# ---------------------------------------------------------------- products


@device_function
def _times(gemm, one, a, a_at, a_turned, lda, b, b_at, b_turned, ldb, beta, M, N, K, c, c_at, ldc):
    """c (M, N) = a (M, K) @ b (K, N) + beta * c; a matrix that is turned lies there transposed.

    Each begins at an element of its array, its rows are lda, ldb, ldc elements apart.
    """
    times(
        gemm,
        one,
        a.ctypes.data + a_at * a.itemsize,
        a_turned,
        lda,
        b.ctypes.data + b_at * b.itemsize,
        b_turned,
        ldb,
        beta,
        M,
        N,
        K,
        c.ctypes.data + c_at * c.itemsize,
        ldc,
    )


@device_function
def _gather(w, at, K, source, from_, ld, y, to, P):
    """Add to P elements of y those of K runs of source, each times its weight."""
    target = y[to : to + P]
    for k in range(K):
        weight, run = w[at + k], source[from_ + k * ld : from_ + k * ld + P]
        for p in range(target.size):
            target[p] += weight * run[p]


@device_function
def _spread(w, at, K, dy, from_, target, to, ld, P, beta):
    """Write P elements of dy to K runs of target, each times its weight; beta as in `_times`."""
    source = dy[from_ : from_ + P]
    for k in range(K):
        weight, run = w[at + k], target[to + k * ld : to + k * ld + P]
        for p in range(source.size):
            run[p] = weight * source[p] if beta == 0 else run[p] + weight * source[p]


@device_function
def _correlate(dy, from_, source, at, ld, P, K, beta, sums, to):
    """Sum the products of P elements of dy with those of each of K runs of source."""
    own = dy[from_ : from_ + P]
    for k in range(K):
        run, total = source[at + k * ld : at + k * ld + P], 0.0
        for first in range(0, P, _ELEMENTS_PER_RUN):
            end = min(first + _ELEMENTS_PER_RUN, P)
            total += sum_products(own, run, first, end, own.dtype.type(0))[1]
        sums[to + k] = total if beta == 0 else sums[to + k] + total


@device_function
def _fill(array, start, pixels, bias, channels, last):
    """Fill an image with the bias of each channel, with 0 if there is none."""
    if bias.size == 0:
        _zero(array, start, start + pixels * channels)
        return
    for c in range(channels):
        value = bias[c]
        if last:
            for p in range(pixels):
                array[start + p * channels + c] = value
        else:
            run = array[start + c * pixels : start + (c + 1) * pixels]
            for p in range(run.size):
                run[p] = value


@device_function
def _rectify(y, at, runs, ld, P):
    """y = max(y, 0), NaN kept, of runs of P elements that begin ld elements apart."""
    for k in range(runs):
        run, zero = y[at + k * ld : at + k * ld + P], y.dtype.type(0)
        for p in range(run.size):
            run[p] = zero if run[p] < zero else run[p]


@device_function
def _plain(geometry):
    """Whether the image is its own patches: kernels of one pixel, without stride and padding."""
    _, H, W, _, kh, kw, OH, OW, sh, sw, _, _, _, _, _, _ = geometry
    return kh == kw == sh == sw == 1 and OH == H and OW == W


# ---------------------------------------------------------------- kernels


@device_function
def _forward_blocks(gemm, one, x, w, bias, relu, geometry, rows, first, end, patches, y):
    """y = x * w + bias, or max(y, 0), for the blocks first..end."""
    C, H, W, F, kh, kw, OH, OW, _, _, _, _, _, _, G, last = geometry
    K, own, plain = C // G * kh * kw, F // G, _plain(geometry)
    blocks = (OH + rows - 1) // rows
    beta = one if bias.size > 0 else one - one
    for unit in range(first, end):
        n, r0 = unit // blocks, unit % blocks * rows
        r1 = min(r0 + rows, OH)
        P = (r1 - r0) * OW
        if last:
            source, at, ld, to = x, (n * H + r0) * W * C, C, (n * OH + r0) * OW * F
            if not plain:
                _patches_last(x, n * H * W * C, geometry, r0, r1, patches, False)
                source, at, ld = patches, 0, K
            if bias.size > 0:
                _fill(y, to, P, bias, F, 1)
            _times(gemm, one, source, at, False, ld, w, 0, True, K, beta, P, F, K, y, to, F)
            if relu:
                _rectify(y, to, 1, 0, P * F)
            continue
        for f in range(0, F, own):
            start = (n * C + f // own * (C // G)) * H * W
            source, at, ld = x, start + r0 * W, H * W
            if not plain:
                _patches_first(x, start, C // G, geometry, r0, r1, patches, False)
                source, at, ld = patches, 0, P
            to = (n * F + f) * OH * OW + r0 * OW
            if bias.size > 0 or own == 1:
                for g in range(own):
                    _fill(y, to + g * OH * OW, P, bias[f + g : f + g + 1], 1, 1)
            if own == 1:
                _gather(w, f * K, K, source, at, ld, y, to, P)
            else:
                _times(gemm, one, w, f * K, False, K, source, at, False, ld, beta,
                       own, P, K, y, to, OH * OW)  # fmt: skip
            if relu:
                _rectify(y, to, own, OH * OW, P)


@device_function
def _input_units(gemm, one, dy, w, bias, geometry, rows, parts, first, end, patches, dx):
    """dx = the gradient of x, plus bias, for parts of the channels of images: first..end."""
    C, H, W, F, kh, kw, OH, OW, _, _, _, _, _, _, G, last = geometry
    K, own, plain = C // G * kh * kw, F // G, _plain(geometry)
    beta = one if plain else one - one
    for unit in range(first, end):
        n, g = unit // (parts * G), unit // parts % G
        c0, c1 = bounds(unit % parts, parts, C // G)
        k0, Kp = c0 * kh * kw, (c1 - c0) * kh * kw
        c0, c1 = g * (C // G) + c0, g * (C // G) + c1
        start = (n * C + c0) * H * W
        _fill(dx, start, H * W, bias[c0:c1], c1 - c0, last)
        for r0 in range(0, OH, rows):
            r1 = min(r0 + rows, OH)
            P = (r1 - r0) * OW
            if last:
                from_ = (n * OH + r0) * OW * F
                target, at, ld = (dx, start + r0 * W * C, C) if plain else (patches, 0, K)
                _times(gemm, one, dy, from_, False, F, w, 0, False, K, beta,
                       P, K, F, target, at, ld)  # fmt: skip
                if not plain:
                    _patches_last(dx, start, geometry, r0, r1, patches, True)
                continue
            from_ = (n * F + g * own) * OH * OW + r0 * OW
            target, at, ld = (dx, start + r0 * W, H * W) if plain else (patches, 0, P)
            if own == 1:
                _spread(w, g * K + k0, Kp, dy, from_, target, at, ld, P, beta)
            else:
                _times(gemm, one, w, g * own * K + k0, True, K, dy, from_, False, OH * OW, beta,
                       Kp, P, own, target, at, ld)  # fmt: skip
            if not plain:
                _patches_first(dx, start, c1 - c0, geometry, r0, r1, patches, True)


@device_function
def _weight_images(gemm, one, dy, x, geometry, rows, first, end, patches, sums, total):
    """Write the gradient of w over the images first..end to sums, from `total` on."""
    C, H, W, F, kh, kw, OH, OW, _, _, _, _, _, _, G, last = geometry
    K, own, plain = C // G * kh * kw, F // G, _plain(geometry)
    beta = one - one
    for n in range(first, end):
        for r0 in range(0, OH, rows):
            r1 = min(r0 + rows, OH)
            P = (r1 - r0) * OW
            if last:
                source, at, ld, from_ = x, (n * H + r0) * W * C, C, (n * OH + r0) * OW * F
                if not plain:
                    _patches_last(x, n * H * W * C, geometry, r0, r1, patches, False)
                    source, at, ld = patches, 0, K
                _times(gemm, one, dy, from_, True, F, source, at, False, ld, beta,
                       F, K, P, sums, total, K)  # fmt: skip
                beta = one
                continue
            for f in range(0, F, own):
                start = (n * C + f // own * (C // G)) * H * W
                source, at, ld = x, start + r0 * W, H * W
                if not plain:
                    _patches_first(x, start, C // G, geometry, r0, r1, patches, False)
                    source, at, ld = patches, 0, P
                from_ = (n * F + f) * OH * OW + r0 * OW
                if own == 1:
                    _correlate(dy, from_, source, at, ld, P, K, beta, sums, total + f * K)
                else:
                    _times(gemm, one, dy, from_, False, OH * OW, source, at, True, ld, beta,
                           own, K, P, sums, total + f * K, K)  # fmt: skip
            beta = one


@Kernel
def _forward(gemm, one, x, w, bias, relu, geometry, rows, units, threads, memory, y):
    """y = x * w + bias, or max(y, 0), in `units` blocks of rows; memory: each thread's patches."""
    size = memory.size // threads
    for t in prange(threads):
        first, end = bounds(t, threads, units)
        patches = memory[t * size : (t + 1) * size]
        _forward_blocks(gemm, one, x, w, bias, relu, geometry, rows, first, end, patches, y)


@Kernel
def _input_gradient(gemm, one, dy, w, bias, geometry, rows, N, parts, threads, memory, dx):
    """dx = the gradient of x, plus bias, with each image in parts; memory as for `_forward`."""
    size = memory.size // threads
    for t in prange(threads):
        first, end = bounds(t, threads, N * parts * geometry[14])
        patches = memory[t * size : (t + 1) * size]
        _input_units(gemm, one, dy, w, bias, geometry, rows, parts, first, end, patches, dx)


@Kernel
def _weight_gradient(gemm, one, dy, x, geometry, rows, N, parts, threads, memory, sums, dw):
    """dw = the gradient of w, over `parts` of the images; sums (parts * dw.size,)."""
    size = memory.size // threads
    for t in prange(threads):
        patches = memory[t * size : (t + 1) * size]
        p0, p1 = bounds(t, threads, parts)
        for part in range(p0, p1):
            first, end = bounds(part, parts, N)
            total = part * dw.size
            _weight_images(gemm, one, dy, x, geometry, rows, first, end, patches, sums, total)
    for t in prange(threads):
        k0, k1 = bounds(t, threads, dw.size)
        target = dw[k0:k1]
        for part in range(parts):
            more = sums[part * dw.size + k0 : part * dw.size + k1]
            for k in range(target.size):
                target[k] = more[k] if part == 0 else target[k] + more[k]


@Kernel
def _bias_gradient(dy, dbias):
    """dbias = sum of dy (N, C, S) over N and S."""
    N, C, S = dy.shape
    for c in prange(C):
        total = 0.0
        for n in range(N):
            for s in range(0, S, _ELEMENTS_PER_RUN):
                end = min(s + _ELEMENTS_PER_RUN, S)
                total += sum_squares(dy[n, c], s, end, dy.dtype.type(0))[0]
        dbias[c] = total


# ---------------------------------------------------------------- launchers


def _with_resting_blas(launcher):
    """Let BLAS use no threads of its own during a launch, or once during a replay."""

    @functools.wraps(launcher)
    def launch(*args):
        with one_thread:
            launcher(*args)

    launch.around, launch.inside = one_thread, launcher
    return launch


def _plan(geometry, N):
    """Rows of a block and how many blocks an image has; threads; elements of their patches."""
    C, _, _, F, kh, kw, OH, OW, *_, G, _ = geometry
    patch = C // G * kh * kw
    # Few images are cut into more blocks, for all threads.
    rows = min(_BLOCK // (patch * OW), -(-N * OH // _FEWEST_UNITS))
    rows = min(max(rows, -(-_FEWEST_PIXELS // OW)), OH)
    blocks = -(-OH // rows)
    rows = -(-OH // blocks)
    threads = workers(N * F * OH * OW * patch)
    return rows, blocks, threads, threads * patch * rows * OW


@_with_resting_blas
def forward(x, w, bias, relu, geometry, y):
    """Convolve: y = x * w + bias, then max(y, 0) if `relu`; bias (F,) or empty."""
    rows, blocks, threads, size = _plan(geometry, len(x))
    memory = scratch(0, size, x.dtype)[1][:size]
    _forward(
        threads, *blas()[x.dtype], x.reshape(-1), w.reshape(-1), bias, relu, geometry, rows,
        len(x) * blocks, threads, memory, y.reshape(-1),
    )  # fmt: skip


@_with_resting_blas
def input_gradient(dy, w, bias, geometry, dx):
    """Gradient of x, plus bias (C,) if it is not empty: a transposed convolution of dy."""
    rows, _, threads, size = _plan(geometry, len(dy))
    C, *_, G, last = geometry
    parts = 1 if last else min(C // G, -(-_FEWEST_UNITS // (len(dy) * G)))
    memory = scratch(0, size, dy.dtype)[1][:size]
    _input_gradient(
        threads, *blas()[dy.dtype], dy.reshape(-1), w.reshape(-1), bias, geometry, rows, len(dy),
        parts, threads, memory, dx.reshape(-1),
    )  # fmt: skip


@_with_resting_blas
def weight_gradient(dy, x, geometry, dw):
    """Gradient of w."""
    rows, _, threads, size = _plan(geometry, len(dy))
    # Together no larger than what they are computed from.
    parts = max(1, min(len(x), _MOST_PARTS, (x.size + dy.size) // (8 * dw.size)))
    memory = scratch(0, size + parts * dw.size, dy.dtype)[1]
    _weight_gradient(
        threads, *blas()[dy.dtype], dy.reshape(-1), x.reshape(-1), geometry, rows, len(x), parts,
        threads, memory[:size], memory[size : size + parts * dw.size], dw.reshape(-1),
    )  # fmt: skip


def bias_gradient(dy, dbias):
    """Sum dy (N, C, S) over N and S."""
    _bias_gradient(workers(dy.size), dy, dbias)
