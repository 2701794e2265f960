"""Convolution of images on a CUDA device: a thread for each element of a result, or a block.

Layouts and `geometry` are those of `convolution_cpu`. A pixel of y or of dx is one thread's sum
over the weights that reach it, neighbours along the last axis of memory in neighbouring threads. A
weight, or a bias, is a block's sum over all images, one for each thread and then pairwise. Sums are
in float32, in float64 for float64 arrays; nothing is added up by atomics.
"""

from numba import cuda

from . import _cuda
from ._cuda import Elementwise, Kernel, accumulator, device_function
from ._cuda_lanes import lanes, load, positive_part, spread, store
from ._cuda_reduction import over_row

# ---------------------------------------------------------------- places


@device_function
def _steps(C, H, W, last):
    """How far apart the images, channels, rows and columns of an array lie."""
    if last:
        return C * H * W, 1, W * C, C
    return C * H * W, H * W, W, 1


@device_function
def _weight_steps(C, kh, kw, last):
    """How far apart the filters, channels and pixels of w lie."""
    if last:
        return C * kh * kw, 1, C
    return C * kh * kw, kh * kw, 1


@device_function
def _place(i, C, H, W, last):
    """(image, channel, row, column) of element i of an array."""
    if last:
        return i // (C * H * W), i % C, i // (C * W) % H, i // C % W
    return i // (C * H * W), i // (H * W) % C, i // W % H, i % W


# ---------------------------------------------------------------- kernels


@Elementwise
def _forward(at, one, operands):
    """y = x * w + bias, or max(y, 0), a thread for each element of y."""
    x, w, bias, relu, geometry, y = operands
    C, H, W, F, kh, kw, OH, OW, sh, sw, ph, pw, dh, dw, G, last = geometry
    own, filters = C // G, F // G
    n, f, r, q = _place(at, F, OH, OW, last)
    image, channel, row, column = _steps(C, H, W, last)
    of_filter, of_channel, of_pixel = _weight_steps(own, kh, kw, last)
    total = load(bias, f, one) if bias.size > 0 else spread(0, one)
    source = n * image + f // filters * own * channel
    for i in range(kh):
        h = r * sh - ph + i * dh
        for j in range(kw):
            v = q * sw - pw + j * dw
            if 0 <= h and h < H and 0 <= v and v < W:
                pixel = source + h * row + v * column
                weight = f * of_filter + (i * kw + j) * of_pixel
                for c in range(own):
                    value = load(x, pixel + c * channel, one)
                    total = total + value * load(w, weight + c * of_channel, one)
    store(y, at, positive_part(total) if relu else total)


@Elementwise
def _image_gradient(at, one, operands):
    """dx = the gradient of x, plus bias, a thread for each element of dx."""
    dy, w, bias, geometry, dx = operands
    C, H, W, F, kh, kw, OH, OW, sh, sw, ph, pw, dh, dw, G, last = geometry
    own, filters = C // G, F // G
    n, c, h, v = _place(at, C, H, W, last)
    image, channel, row, column = _steps(F, OH, OW, last)
    of_filter, of_channel, of_pixel = _weight_steps(own, kh, kw, last)
    total = load(bias, c, one) if bias.size > 0 else spread(0, one)
    first = c // own * filters
    for i in range(kh):
        below = h + ph - i * dh
        for j in range(kw):
            right = v + pw - j * dw
            r, q = below // sh, right // sw
            met = below >= 0 and right >= 0 and r * sh == below and q * sw == right
            if met and r < OH and q < OW:
                pixel = n * image + first * channel + r * row + q * column
                weight = first * of_filter + c % own * of_channel + (i * kw + j) * of_pixel
                for f in range(filters):
                    value = load(dy, pixel + f * channel, one)
                    total = total + value * load(w, weight + f * of_filter, one)
    store(dx, at, total)


@Kernel
def _weight_gradient(acc):
    """dw = the gradient of w, a block for each element of dw."""
    threads = _cuda.THREADS

    def kernel(dy, x, N, geometry, dweight):
        C, H, W, F, kh, kw, OH, OW, sh, sw, ph, pw, dh, dw, G, last = geometry
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        own, at = C // G, cuda.blockIdx.x
        if last:
            f, i, j, c = at // (kh * kw * own), at // (kw * own) % kh, at // own % kw, at % own
        else:
            f, c, i, j = at // (own * kh * kw), at // (kh * kw) % own, at // kw % kh, at % kw
        image, channel, row, column = _steps(C, H, W, last)
        dy_image, dy_channel, dy_row, dy_column = _steps(F, OH, OW, last)
        source = (f // (F // G) * own + c) * channel
        total = spread(0, one)
        for p in range(cuda.threadIdx.x, N * OH * OW, threads):
            n, r, q = p // (OH * OW), p // OW % OH, p % OW
            h, v = r * sh - ph + i * dh, q * sw - pw + j * dw
            if 0 <= h and h < H and 0 <= v and v < W:
                value = load(x, source + n * image + h * row + v * column, one)
                gradient = n * dy_image + f * dy_channel + r * dy_row + q * dy_column
                total = total + value * load(dy, gradient, one)
        total = over_row(memory, total, False)
        if cuda.threadIdx.x == 0:
            store(dweight, at, total)

    return kernel


@Kernel
def _bias_gradient(acc):
    """dbias = sum of dy (N, C, S) over N and S, a block for each channel."""
    threads = _cuda.THREADS

    def kernel(dy, N, S, dbias):
        memory, one = cuda.shared.array(threads, acc), lanes(acc(1), 1)
        C, c = dbias.size, cuda.blockIdx.x
        total = spread(0, one)
        for p in range(cuda.threadIdx.x, N * S, threads):
            total = total + load(dy, (p // S * C + c) * S + p % S, one)
        total = over_row(memory, total, False)
        if cuda.threadIdx.x == 0:
            store(dbias, c, total)

    return kernel


# ---------------------------------------------------------------- launchers


def forward(x, w, bias, relu, geometry, y):
    """Convolve: y = x * w + bias, then max(y, 0) if `relu`; bias (F,) or empty."""
    _forward(x, w, bias, int(relu), geometry, y, aligned=(y,), length=1)


def input_gradient(dy, w, bias, geometry, dx):
    """Gradient of x, plus bias (C,) if it is not empty: a transposed convolution of dy."""
    _image_gradient(dy, w, bias, geometry, dx, aligned=(dx,), length=1)


def weight_gradient(dy, x, geometry, dw):
    """Gradient of w."""
    _weight_gradient[accumulator(dy.dtype)](
        (dw.size,), (_cuda.THREADS, 1), dy, x, len(x), geometry, dw
    )


def bias_gradient(dy, dbias):
    """Sum dy (N, C, S) over N and S."""
    N, C, S = dy.shape
    _bias_gradient[accumulator(dy.dtype)]((C,), (_cuda.THREADS, 1), dy, N, S, dbias)
