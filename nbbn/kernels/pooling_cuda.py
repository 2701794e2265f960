"""Pooling of images on a CUDA device: the layouts, windows and indices of `pooling_cpu`.

A thread makes 16 bytes of neighbouring outputs where channels are last, one output where they are
first. Gradients gather: a pixel adds up the windows that cover it in a fixed order, without
atomics. Sums are in float32, in float64 for float64 images; those of whole images in runs, whose
sums add up in turn.
"""

from ._cuda import Elementwise, device_function
from ._cuda_lanes import lane, load, spread, store, width, with_lane

# ---------------------------------------------------------------- kernels

# Pixels in a run.
_RUN = 128


@device_function
def _place(i, B, H, W):
    """(a, h, w, b) of element i of images (A, H, W, B)."""
    pixel = i // B
    return pixel // (W * H), pixel // W % H, pixel % W, i % B


@device_function
def _first_covering(pixel, padding, reach, stride):
    """The first window whose last pixel is not before this one."""
    behind = pixel + padding - reach
    return (behind + stride - 1) // stride if behind > 0 else 0


@device_function
def _inside(first, step, count, low, high):
    """How many of the `count` numbers first, first + step, ... are in [low, high)."""
    total = 0
    for k in range(count):
        if low <= first + k * step < high:
            total += 1
    return total


@device_function
def _counting(oh, ow, window, counted):
    """How many pixels of a window count."""
    KH, KW, SH, SW, PH, PW, DH, DW = window
    top, left, bottom, right = counted
    rows = _inside(oh * SH - PH, DH, KH, top, bottom)
    return rows * _inside(ow * SW - PW, DW, KW, left, right)


@Elementwise
def _max_pool(i, like, operands):
    """y = max of x over windows, index its tap; x (A, H, W, B), y, index (A, OH, OW, B)."""
    x, sizes, window, index, y = operands
    B, H, W, OH, OW = sizes
    KH, KW, SH, SW, PH, PW, DH, DW = window
    a, oh, ow, b = _place(i, B, OH, OW)
    best, at, seen = spread(0, like), spread(0, like), False
    for kh in range(KH):
        h = oh * SH + kh * DH - PH
        for kw in range(KW):
            w = ow * SW + kw * DW - PW
            if 0 <= h < H and 0 <= w < W:
                values = load(x, ((a * H + h) * W + w) * B + b, like)
                tap = lane(spread(kh * KW + kw, like), 0)
                for k in range(width(like)):
                    value = lane(values, k)
                    if not seen or value > lane(best, k) or value != value:
                        best, at = with_lane(best, k, value), with_lane(at, k, tap)
                seen = True
    store(y, i, best)
    for k in range(width(like)):
        index[i + k] = int(lane(at, k))


@Elementwise
def _max_pool_backward(i, like, operands):
    """dx = sum of dy over the windows whose maximum x is; dy, index as y, dx (A, H, W, B)."""
    dy, index, sizes, window, dx = operands
    B, H, W, OH, OW = sizes
    KH, KW, SH, SW, PH, PW, DH, DW = window
    a, h, w, b = _place(i, B, H, W)
    total = spread(0, like)
    for oh in range(_first_covering(h, PH, (KH - 1) * DH, SH), OH):
        kh = h + PH - oh * SH
        if kh < 0:
            break
        for ow in range(_first_covering(w, PW, (KW - 1) * DW, SW), OW):
            kw = w + PW - ow * SW
            if kw < 0:
                break
            if kh % DH == 0 and kw % DW == 0:
                place, tap = ((a * OH + oh) * OW + ow) * B + b, kh // DH * KW + kw // DW
                values = load(dy, place, like)
                for k in range(width(like)):
                    if int(index[place + k]) == tap:
                        total = with_lane(total, k, lane(total, k) + lane(values, k))
    store(dx, i, total)


@Elementwise
def _max_pool_take(i, like, operands):
    """y = x at the tap `index` of each window, 0 outside; x (A, H, W, B), y (A, OH, OW, B)."""
    x, index, sizes, window, y = operands
    B, H, W, OH, OW = sizes
    _, KW, SH, SW, PH, PW, DH, DW = window
    a, oh, ow, b = _place(i, B, OH, OW)
    tap = int(index[i])
    h, w = oh * SH + tap // KW * DH - PH, ow * SW + tap % KW * DW - PW
    inside = 0 <= h < H and 0 <= w < W
    y[i] = x[((a * H + h) * W + w) * B + b] if inside else y.dtype.type(0)


@Elementwise
def _avg_pool(i, like, operands):
    """y = sum of x over windows / how much of each counts; x (A, H, W, B), y (A, OH, OW, B)."""
    x, sizes, window, counted, y = operands
    B, H, W, OH, OW = sizes
    KH, KW, SH, SW, PH, PW, DH, DW = window
    a, oh, ow, b = _place(i, B, OH, OW)
    total = spread(0, like)
    for kh in range(KH):
        h = oh * SH + kh * DH - PH
        for kw in range(KW):
            w = ow * SW + kw * DW - PW
            if 0 <= h < H and 0 <= w < W:
                total = total + load(x, ((a * H + h) * W + w) * B + b, like)
    store(y, i, total / spread(_counting(oh, ow, window, counted), like))


@Elementwise
def _share(i, like, operands):
    """share = dy / how much of each window counts; dy, share (A, OH, OW, B)."""
    dy, sizes, window, counted, share = operands
    B, _, _, OH, OW = sizes
    _, oh, ow, _ = _place(i, B, OH, OW)
    store(share, i, load(dy, i, like) / spread(_counting(oh, ow, window, counted), like))


@Elementwise
def _spread(i, like, operands):
    """dx = sum of dy over the windows that x is in; dy (A, OH, OW, B), dx (A, H, W, B)."""
    dy, sizes, window, dx = operands
    B, H, W, OH, OW = sizes
    KH, KW, SH, SW, PH, PW, DH, DW = window
    a, h, w, b = _place(i, B, H, W)
    total = spread(0, like)
    for oh in range(_first_covering(h, PH, (KH - 1) * DH, SH), OH):
        kh = h + PH - oh * SH
        if kh < 0:
            break
        for ow in range(_first_covering(w, PW, (KW - 1) * DW, SW), OW):
            kw = w + PW - ow * SW
            if kw < 0:
                break
            if kh % DH == 0 and kw % DW == 0:
                total = total + load(dy, ((a * OH + oh) * OW + ow) * B + b, like)
    store(dx, i, total)


@Elementwise
def _global_avg_pool(i, like, operands):
    """y = mean of x over S; x (A, S, B), y (A, B)."""
    x, S, B, y = operands
    start = i // B * S * B + i % B
    total = spread(0, like)
    for first in range(0, S, _RUN):
        part = spread(0, like)
        for s in range(first, min(first + _RUN, S)):
            part = part + load(x, start + s * B, like)
        total = total + part
    store(y, i, total / spread(S, like))


@Elementwise
def _global_avg_pool_backward(i, like, operands):
    """dx = dy / S; dy (A, B), dx (A, S, B)."""
    dy, S, B, dx = operands
    store(dx, i, load(dy, i // (S * B) * B + i % B, like) / spread(S, like))


# ---------------------------------------------------------------- launchers


def _sizes(x, y):
    """(B, H, W, OH, OW) of images and outputs."""
    return (x.shape[3], *x.shape[1:3], *y.shape[1:3])


def max_pool(x, window, y, index):
    """Maximum of each window and which of its taps has it."""
    _max_pool(x, _sizes(x, y), window, index, y, aligned=(x, y), length=x.shape[3])


def max_pool_backward(dy, index, window, dx):
    """Give each window's gradient to its maximum."""
    operands = dy, index, _sizes(dx, dy), window, dx
    _max_pool_backward(*operands, aligned=(dy, dx), length=dx.shape[3])


def max_pool_take(x, index, window, y):
    """Pick what an index of maxima names."""
    # One by one: neighbours take from different pixels.
    _max_pool_take(x, index, _sizes(x, y), window, y, aligned=(y,), length=1)


def avg_pool(x, window, counted, y):
    """Mean of each window, over the pixels that are counted."""
    _avg_pool(x, _sizes(x, y), window, counted, y, aligned=(x, y), length=x.shape[3])


def avg_pool_backward(dy, window, counted, share, dx):
    """Spread each window's gradient evenly; share, of dy's shape, is for what a pixel gets."""
    sizes, B = _sizes(dx, dy), dx.shape[3]
    _share(dy, sizes, window, counted, share, aligned=(dy, share), length=B)
    _spread(share, sizes, window, dx, aligned=(share, dx), length=B)


def global_avg_pool(x, y):
    """Mean of each channel of each image: x (A, S, B), y (A, B)."""
    _, S, B = x.shape
    _global_avg_pool(x, S, B, y, aligned=(x, y), length=B)


def global_avg_pool_backward(dy, dx):
    """Spread the gradient of each mean: dy (A, B), dx (A, S, B)."""
    _, S, B = dx.shape
    _global_avg_pool_backward(dy, S, B, dx, aligned=(dy, dx), length=B)
