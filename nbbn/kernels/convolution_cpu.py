"""Convolution of images on the CPU: a block of output rows at a time, unrolled, and one product.

Channels first are x (N, C, H, W), y (N, F, OH, OW) and w (F, C / groups, kh, kw); channels last are
x (N, H, W, C), y (N, OH, OW, F) and w (F, kh, kw, C / groups). The patches of a block, one for each
output pixel, are copied into scratch in w's own order, so that a group's output is a matrix product
with w as it lies. The input gradient is the product with w transposed, added back pixel by pixel;
the weight gradient multiplies dy with the patches, and sums over images in parts that follow from
the shape. Products are BLAS calls as in `matmul_cpu`, in the type of x; sums over images too.

`window` is (stride, stride, padding, padding, dilation, dilation, groups), height before width;
the padding is that in front, the one behind follows from the shapes.
"""

import functools

from numba import prange

from ._jit import Kernel, bounds, device_function, scratch, workers
from ._vector import sum_squares
from .matmul_cpu import AS_IT_IS, TURNED, blas, one_thread, product

# Elements of a block's patches: about what the second cache of a core holds.
_BLOCK = 1 << 17
# A product over fewer pixels would spend its time on packing the weights.
_FEWEST_PIXELS = 64
# Parts of the images whose weight gradients are summed apart.
_MOST_PARTS = 16
_ELEMENTS_PER_RUN = 1024

# ---------------------------------------------------------------- blocks


def _rows_of_block(patch, y_shape):
    """How many output rows are unrolled at once: by the shapes alone."""
    height, width = y_shape
    rows = max(_BLOCK // (patch * width), -(-_FEWEST_PIXELS // width))
    blocks = -(-height // min(rows, height))
    return -(-height // blocks)


@device_function
def _times(gemm, one, a, a_turned, lda, b, b_turned, ldb, beta, M, N, K, c, ldc):
    """c (M, N) = a (M, K) @ b (K, N) + beta * c; a matrix that is turned lies there transposed.

    Matrices begin where the arrays do, their rows are lda, ldb, ldc elements apart.
    """
    # BLAS counts by columns: the transposed of c is that of b times that of a.
    product(
        gemm,
        one,
        TURNED if b_turned else AS_IT_IS,
        TURNED if a_turned else AS_IT_IS,
        N,
        M,
        K,
        b.ctypes.data,
        ldb,
        a.ctypes.data,
        lda,
        beta,
        c.ctypes.data,
        ldc,
    )


@device_function
def _inside(shift, stride, size, count):
    """First and last + 1 of the `count` positions p for which p * stride + shift is in 0..size."""
    first = min(max(-shift + stride - 1, 0) // stride, count)
    return first, max(min((size - 1 - shift) // stride + 1, count), first)


@device_function
def _unroll_first(x, c0, C, kh, kw, window, r0, r1, OW, patches):
    """Write the patches (C * kh * kw, pixels) of channels c0.. of x (C, H, W), rows r0..r1."""
    sh, sw, ph, pw, dh, dw, _ = window
    _, H, W = x.shape
    zero = x.dtype.type(0)
    at = 0
    for c in range(c0, c0 + C):
        for i in range(kh):
            for j in range(kw):
                left = j * dw - pw
                q0, q1 = _inside(left, sw, W, OW)
                for r in range(r0, r1):
                    h = r * sh - ph + i * dh
                    target = patches[at : at + OW]
                    at += OW
                    if h < 0 or h >= H or q0 == q1:
                        target[:] = zero
                        continue
                    target[:q0] = zero
                    target[q1:] = zero
                    inner, source = target[q0:q1], x[c, h, q0 * sw + left :]
                    if sw == 1:
                        for q in range(inner.size):
                            inner[q] = source[q]
                    else:
                        for q in range(inner.size):
                            inner[q] = source[q * sw]


@device_function
def _roll_first(patches, c0, C, kh, kw, window, r0, r1, OW, dx):
    """Add patches, as `_unroll_first` writes them, to where they come from in dx (C, H, W)."""
    sh, sw, ph, pw, dh, dw, _ = window
    _, H, W = dx.shape
    at = 0
    for c in range(c0, c0 + C):
        for i in range(kh):
            for j in range(kw):
                left = j * dw - pw
                q0, q1 = _inside(left, sw, W, OW)
                for r in range(r0, r1):
                    h = r * sh - ph + i * dh
                    source = patches[at + q0 : at + q1]
                    at += OW
                    if h < 0 or h >= H or q0 == q1:
                        continue
                    target = dx[c, h, q0 * sw + left :]
                    if sw == 1:
                        for q in range(source.size):
                            target[q] += source[q]
                    else:
                        for q in range(source.size):
                            target[q * sw] += source[q]


@device_function
def _unroll_last(x, c0, C, kh, kw, window, r0, r1, OW, patches):
    """Write the patches (pixels, kh * kw * C) of channels c0.. of x (H, W, C), rows r0..r1."""
    sh, sw, ph, pw, dh, dw, _ = window
    H, W, _ = x.shape
    zero = x.dtype.type(0)
    at = 0
    for r in range(r0, r1):
        for q in range(OW):
            for i in range(kh):
                h = r * sh - ph + i * dh
                for j in range(kw):
                    w = q * sw - pw + j * dw
                    target = patches[at : at + C]
                    at += C
                    if h < 0 or h >= H or w < 0 or w >= W:
                        target[:] = zero
                        continue
                    source = x[h, w, c0 : c0 + C]
                    for c in range(C):
                        target[c] = source[c]


@device_function
def _roll_last(patches, c0, C, kh, kw, window, r0, r1, OW, dx):
    """Add patches, as `_unroll_last` writes them, to where they come from in dx (H, W, C)."""
    sh, sw, ph, pw, dh, dw, _ = window
    H, W, _ = dx.shape
    at = 0
    for r in range(r0, r1):
        for q in range(OW):
            for i in range(kh):
                h = r * sh - ph + i * dh
                for j in range(kw):
                    w = q * sw - pw + j * dw
                    source = patches[at : at + C]
                    at += C
                    if h < 0 or h >= H or w < 0 or w >= W:
                        continue
                    target = dx[h, w, c0 : c0 + C]
                    for c in range(C):
                        target[c] += source[c]


@device_function
def _sizes(w, y, last):
    """(kh, kw, C / groups, OH, OW) of a convolution."""
    if last:
        return w.shape[1], w.shape[2], w.shape[3], y.shape[1], y.shape[2]
    return w.shape[2], w.shape[3], w.shape[1], y.shape[2], y.shape[3]


@device_function
def _fill(image, last, bias):
    """Fill an image with the bias of each channel, with 0 if there is none."""
    if bias.size == 0:
        image[...] = image.dtype.type(0)
    elif last:
        image[...] = bias
    else:
        for c in range(bias.size):
            image[c] = bias[c]


# ---------------------------------------------------------------- kernels


@Kernel
def _forward(gemm, one, x, w, bias, window, last, rows, threads, memory, y):
    """y = x * w + bias; memory holds the patches of `rows` rows for each of `threads`."""
    kh, kw, C, OH, OW = _sizes(w, y, last)
    F, G, K = w.shape[0], window[6], C * kh * kw
    own = F // G
    blocks = (OH + rows - 1) // rows
    for t in prange(threads):
        patches = memory[t * K * rows * OW : (t + 1) * K * rows * OW]
        first, end = bounds(t, threads, y.shape[0] * blocks)
        for unit in range(first, end):
            n, r0 = unit // blocks, unit % blocks * rows
            r1 = min(r0 + rows, OH)
            P = (r1 - r0) * OW
            block = y[n, r0:r1] if last else y[n, :, r0:r1]
            _fill(block, last, bias)
            for g in range(G):
                if last:
                    _unroll_last(x[n], g * C, C, kh, kw, window, r0, r1, OW, patches)
                    _times(gemm, one, patches, False, K, w[g * own :], True, K, one,
                           P, own, K, block[:, :, g * own :], F)  # fmt: skip
                else:
                    _unroll_first(x[n], g * C, C, kh, kw, window, r0, r1, OW, patches)
                    _times(gemm, one, w[g * own :], False, K, patches, False, P, one,
                           own, P, K, block[g * own :], OH * OW)  # fmt: skip


@Kernel
def _input_gradient(gemm, one, dy, w, bias, window, last, rows, threads, memory, dx):
    """dx = the gradient of x, plus bias; memory as for `_forward`."""
    kh, kw, C, OH, OW = _sizes(w, dy, last)
    F, G, K = w.shape[0], window[6], C * kh * kw
    own, zero = F // G, one - one
    for t in prange(threads):
        patches = memory[t * K * rows * OW : (t + 1) * K * rows * OW]
        first, end = bounds(t, threads, dx.shape[0])
        for n in range(first, end):
            _fill(dx[n], last, bias)
            for r0 in range(0, OH, rows):
                r1 = min(r0 + rows, OH)
                P = (r1 - r0) * OW
                for g in range(G):
                    if last:
                        _times(gemm, one, dy[n, r0:, :, g * own :], False, F, w[g * own :], False,
                               K, zero, P, K, own, patches, K)  # fmt: skip
                        _roll_last(patches, g * C, C, kh, kw, window, r0, r1, OW, dx[n])
                    else:
                        _times(gemm, one, w[g * own :], True, K, dy[n, g * own :, r0:], False,
                               OH * OW, zero, K, P, own, patches, P)  # fmt: skip
                        _roll_first(patches, g * C, C, kh, kw, window, r0, r1, OW, dx[n])


@Kernel
def _weight_gradient(gemm, one, dy, x, window, last, rows, parts, threads, memory, sums, dw):
    """dw = the gradient of w, over `parts` of the images; sums (parts * dw.size,)."""
    kh, kw, C, OH, OW = _sizes(dw, dy, last)
    F, G, K = dw.shape[0], window[6], C * kh * kw
    own = F // G
    for t in prange(threads):
        patches = memory[t * K * rows * OW : (t + 1) * K * rows * OW]
        first, end = bounds(t, threads, parts)
        for part in range(first, end):
            n0, n1 = bounds(part, parts, x.shape[0])
            beta = one - one
            for n in range(n0, n1):
                for r0 in range(0, OH, rows):
                    r1 = min(r0 + rows, OH)
                    P = (r1 - r0) * OW
                    for g in range(G):
                        total = sums[(part * F + g * own) * K :]
                        if last:
                            _unroll_last(x[n], g * C, C, kh, kw, window, r0, r1, OW, patches)
                            _times(gemm, one, dy[n, r0:, :, g * own :], True, F, patches, False,
                                   K, beta, own, K, P, total, K)  # fmt: skip
                        else:
                            _unroll_first(x[n], g * C, C, kh, kw, window, r0, r1, OW, patches)
                            _times(gemm, one, dy[n, g * own :, r0:], False, OH * OW, patches, True,
                                   P, beta, own, K, P, total, K)  # fmt: skip
                    beta = one
    for o in prange(F):
        target = dw[o].reshape(K)
        target[:] = sums[o * K : (o + 1) * K]
        for part in range(1, parts):
            more = sums[(part * F + o) * K : (part * F + o + 1) * K]
            for k in range(K):
                target[k] += more[k]


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


def _plan(w, y, last):
    """Rows of a block, threads, and scratch for the patches, for a convolution that gives y."""
    patch = w.size // w.shape[0]
    OH, OW = y.shape[1:3] if last else y.shape[2:]
    rows = _rows_of_block(patch, (OH, OW))
    threads = workers(y.size * patch)
    return rows, threads, threads * patch * rows * OW


@_with_resting_blas
def forward(x, w, bias, window, last, y):
    """Convolve: y = x * w + bias; bias (F,) or empty."""
    rows, threads, size = _plan(w, y, last)
    memory = scratch(0, size, x.dtype)[1]
    _forward(threads, *blas()[x.dtype], x, w, bias, window, last, rows, threads, memory, y)


@_with_resting_blas
def input_gradient(dy, w, bias, window, last, dx):
    """Gradient of x, plus bias (C,) if it is not empty: a transposed convolution of dy."""
    rows, threads, size = _plan(w, dy, last)
    memory = scratch(0, size, dy.dtype)[1]
    _input_gradient(
        threads, *blas()[dy.dtype], dy, w, bias, window, last, rows, threads, memory, dx
    )


@_with_resting_blas
def weight_gradient(dy, x, window, last, dw):
    """Gradient of w."""
    rows, threads, size = _plan(dw, dy, last)
    # Together no larger than what they are computed from.
    parts = max(1, min(len(x), _MOST_PARTS, (x.size + dy.size) // (8 * dw.size)))
    memory = scratch(0, size + parts * dw.size, dy.dtype)[1]
    _weight_gradient(
        threads, *blas()[dy.dtype], dy, x, window, last, rows, parts, threads,
        memory[:size], memory[size:], dw,
    )  # fmt: skip


def bias_gradient(dy, dbias):
    """Sum dy (N, C, S) over N and S."""
    _bias_gradient(workers(dy.size), dy, dbias)
