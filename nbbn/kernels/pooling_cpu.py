"""Pooling of images on the CPU: maxima, averages and their gradients, window by window.

Images are (A, H, W, B) of one floating type: A = N C and B = 1 with channels first, A = N and B = C
with channels last. Outputs are (A, OH, OW, B). With a `window` (KH, KW, SH, SW, PH, PW, DH, DW),
output (oh, ow) looks at the pixels (oh SH + kh DH - PH, ow SW + kw DW - PW) that are inside the
image, of which there is one at least. Kernels see rows, (A H, W B) and (A OH, OW B), and
`sizes`, (B, H, W, OH, OW). Loops go along a row for one tap (kh, kw) of all its windows, since that
vectorizes where a loop over one window would not; windows of 2 by 2 side by side are treated whole.
The index of a maximum is its tap, kh KW + kw.

Gradients gather: each row of pixels adds up the windows that cover it, in an order of the window's
alone, so that no two threads write to one place. Averages add up in the images' type, those of
whole images in float64.
"""

import numpy as np
from numba import prange

from ._jit import Kernel, bounds, device_function, inlined_device_function, scratch, workers
from ._vector import sum_squares

# With fewer windows in a row of one channel, a loop over each is faster than one over all of them.
FEW_WINDOWS = 8

# ---------------------------------------------------------------- kernels


@device_function
def _span(offset, step, W, OW):
    """First and last + 1 of the j in [0, OW) for which offset + j step is in [0, W)."""
    first, last = 0, OW
    if offset < 0:
        first = (step - 1 - offset) // step
    if offset + (OW - 1) * step >= W:
        last = (W - offset + step - 1) // step if offset < W else 0
    return first, max(first, last)


@device_function
def _run(first, last, B, step):
    """How many outputs of a span one loop treats: all of one channel, and all side by side."""
    return max(1, last - first) if B == 1 or step == 1 else 1


@device_function
def _reached(pixel, first, step, count):
    """The o in [0, count) with first + o step == pixel, -1 where there is none."""
    distance = pixel - first
    o = distance // step
    return o if 0 <= distance < count * step and o * step == distance else -1


@device_function
def _inside(first, step, count, low, high):
    """How many of the `count` numbers first, first + step, ... are in [low, high)."""
    if first >= low and first + (count - 1) * step < high:
        return count
    a, b = _span(first - low, step, high - low, count)
    return b - a


@device_function
def _larger(value, tap, best, at):
    """The larger of a value and the best so far, with its tap: first of equals, last NaN."""
    larger = (value > best) | (value != value)
    return value if larger else best, tap if larger else at


@device_function
def _max_along(source, step, tap, best, at):
    """Let source[j step] compete for best[j]."""
    if step == 1:  # known to be 1, it vectorizes
        for j in range(best.size):
            best[j], at[j] = _larger(source[j], tap, best[j], at[j])
    else:
        for j in range(best.size):
            best[j], at[j] = _larger(source[j * step], tap, best[j], at[j])


@device_function
def _max_2x2(upper, lower, best, at):
    """Maxima of windows of 2 by 2 side by side, of one channel."""
    tap = at.dtype.type
    for j in range(best.size):
        value, place = upper[2 * j], tap(0)
        value, place = _larger(upper[2 * j + 1], tap(1), value, place)
        value, place = _larger(lower[2 * j], tap(2), value, place)
        value, place = _larger(lower[2 * j + 1], tap(3), value, place)
        best[j], at[j] = value, place


@device_function
def _max_windows(x, image, top, sizes, window, best, at):
    """Maxima of one row of windows, of one channel: window by window, for few or large ones."""
    _, H, W, _, _ = sizes
    KH, KW, _, SW, _, PW, DH, DW = window
    upper = max(0, (DH - 1 - top) // DH)
    for ow in range(best.size):
        left = ow * SW - PW
        inner = max(0, (DW - 1 - left) // DW) if left < 0 else 0
        last = KW if left + (KW - 1) * DW < W else (W - left + DW - 1) // DW
        value, place = x.dtype.type(-np.inf), upper * KW + inner
        for kh in range(upper, KH):
            if top + kh * DH >= H:
                break
            source = x[image + top + kh * DH]
            for kw in range(inner, last):
                value, place = _larger(source[left + kw * DW], kh * KW + kw, value, place)
        best[ow], at[ow] = value, at.dtype.type(place)


@Kernel
def _max_pool(x, sizes, window, y, index):
    """y = max of x over windows, index its tap; x (A H, W B), y, index (A OH, OW B)."""
    B, H, W, OH, OW = sizes
    KH, KW, SH, SW, PH, PW, DH, DW = window
    tap_of = index.dtype.type
    step = SW if B == 1 else 1
    whole = B == 1 and (KH, KW, SH, SW, PH, PW, DH, DW) == (2, 2, 2, 2, 0, 0, 1, 1)
    for row in prange(y.shape[0]):
        best, at = y[row], index[row]
        image, top = row // OH * H, row % OH * SH - PH
        if whole and 2 * OH <= H and 2 * OW <= W:
            _max_2x2(x[image + top], x[image + top + 1], best, at)
            continue
        if B == 1 and OW < FEW_WINDOWS:
            _max_windows(x, image, top, sizes, window, best, at)
            continue
        best[:] = -np.inf
        # The first tap inside the image wins among values of -Inf.
        upper = max(0, (DH - 1 - top) // DH)
        for kw in range(KW - 1, -1, -1):
            a, b = _span(kw * DW - PW, SW, W, OW)
            at[a * B : b * B] = tap_of(upper * KW + kw)
        for kh in range(upper, KH):
            if top + kh * DH >= H:
                break
            source = x[image + top + kh * DH]
            for kw in range(KW):
                tap, offset = tap_of(kh * KW + kw), kw * DW - PW
                a, b = _span(offset, SW, W, OW)
                run = _run(a, b, B, SW)
                for j in range(a, b, run):
                    span, place = slice(j * B, (j + run) * B), (offset + j * SW) * B
                    _max_along(source[place:], step, tap, best[span], at[span])


@Kernel
def _max_pool_backward_planes(dy, index, sizes, window, places, dx):
    """As `_max_pool_backward` for B = 1, a plane at a time; places (KH KW,) is what taps add."""
    _, H, W, OH, OW = sizes
    KH, KW, SH, SW, PH, PW, DH, DW = window
    for tap in range(KH * KW):
        places[tap] = (tap // KW * DH - PH) * W + tap % KW * DW - PW
    planes = dx.reshape(-1, H * W)
    for a in prange(planes.shape[0]):
        target = planes[a]
        target[:] = 0
        for oh in range(OH):
            source, at = dy[a * OH + oh], index[a * OH + oh]
            for ow in range(OW):
                tap = np.int64(at[ow])
                if 0 <= tap < KH * KW:
                    place = places[tap] + oh * SH * W + ow * SW
                    # No index of the forward is elsewhere; one of somebody's own may be.
                    if 0 <= place < target.size:
                        target[place] += source[ow]


@device_function
def _add_chosen(source, at, tap, target):
    """Add source where its maximum is at this tap."""
    zero = source.dtype.type(0)
    for j in range(source.size):
        target[j] += source[j] if at[j] == tap else zero


@Kernel
def _max_pool_backward(dy, index, sizes, window, dx):
    """dx = sum of dy over the windows whose maximum x is; dy, index (A OH, OW B), dx (A H, W B)."""
    B, H, W, OH, OW = sizes
    KH, KW, SH, SW, PH, PW, DH, DW = window
    for row in prange(dx.shape[0]):
        target, image = dx[row], row // H * OH
        target[:] = 0
        for kh in range(KH):
            oh = _reached(row % H, kh * DH - PH, SH, OH)
            if oh < 0:
                continue
            source, at = dy[image + oh], index[image + oh]
            for kw in range(KW):
                tap, offset = index.dtype.type(kh * KW + kw), kw * DW - PW
                a, b = _span(offset, SW, W, OW)
                run = _run(a, b, B, SW)
                for j in range(a, b, run):
                    span, place = slice(j * B, (j + run) * B), (offset + j * SW) * B
                    _add_chosen(source[span], at[span], tap, target[place:])


@Kernel
def _max_pool_take(x, index, sizes, window, y):
    """y = x at the tap `index` of each window, 0 outside; x (A H, W B), index, y (A OH, OW B)."""
    B, H, W, OH, _ = sizes
    _, KW, SH, SW, PH, PW, DH, DW = window
    for row in prange(y.shape[0]):
        image, top = row // OH * H, row % OH * SH - PH
        for i in range(y.shape[1]):
            tap = np.int64(index[row, i])
            h, w = top + tap // KW * DH, i // B * SW + tap % KW * DW - PW
            inside = 0 <= h < H and 0 <= w < W
            y[row, i] = x[image + h, w * B + i % B] if inside else 0


@device_function
def _add_from(source, step, target):
    """Add source[j step] to target[j]."""
    if step == 1:
        for j in range(target.size):
            target[j] += source[j]
    else:
        for j in range(target.size):
            target[j] += source[j * step]


@device_function
def _add_to(source, step, target):
    """Add source[j] to target[j step]."""
    if step == 1:
        for j in range(source.size):
            target[j] += source[j]
    else:
        for j in range(source.size):
            target[j * step] += source[j]


@inlined_device_function
def _add_taps(pixels, outputs, sizes, window, back):
    """Add what the taps of one row of a window see in a row of pixels (W B) to outputs (OW B).

    Or, with `back`, add outputs to pixels.
    """
    B, _, W, _, OW = sizes
    _, KW, _, SW, _, PW, _, DW = window
    if B == 1 and OW < FEW_WINDOWS:
        for ow in range(OW):
            for kw in range(KW):
                w = ow * SW - PW + kw * DW
                if 0 <= w < W:
                    if back:
                        pixels[w] += outputs[ow]
                    else:
                        outputs[ow] += pixels[w]
        return
    step = SW if B == 1 else 1
    for kw in range(KW):
        offset = kw * DW - PW
        a, b = _span(offset, SW, W, OW)
        run = _run(a, b, B, SW)
        for j in range(a, b, run):
            part, those = outputs[j * B : (j + run) * B], pixels[(offset + j * SW) * B :]
            if back:
                _add_to(part, step, those)
            else:
                _add_from(those, step, part)


@Kernel
def _window_sums(x, sizes, window, y):
    """y = sum of x over windows; x (A H, W B), y (A OH, OW B)."""
    _, H, _, OH, _ = sizes
    KH, _, SH, _, PH, _, DH, _ = window
    for row in prange(y.shape[0]):
        image, top = row // OH * H, row % OH * SH - PH
        y[row] = 0
        for kh in range(KH):
            if 0 <= top + kh * DH < H:
                _add_taps(x[image + top + kh * DH], y[row], sizes, window, False)


@Kernel
def _spread(dy, sizes, window, dx):
    """dx = sum of dy over the windows that x is in; dy (A OH, OW B), dx (A H, W B)."""
    _, H, _, OH, _ = sizes
    KH, _, SH, _, PH, _, DH, _ = window
    for row in prange(dx.shape[0]):
        dx[row] = 0
        for kh in range(KH):
            oh = _reached(row % H, kh * DH - PH, SH, OH)
            if oh >= 0:
                _add_taps(dx[row], dy[row // H * OH + oh], sizes, window, True)


@Kernel
def _over_counts(x, sizes, window, counted, y):
    """y = x / how many pixels of each window count; x, y (A OH, OW B).

    `counted` are the first row and column whose pixels count, and the last ones + 1.
    """
    B, _, _, OH, OW = sizes
    KH, KW, SH, SW, PH, PW, DH, DW = window
    top, left, bottom, right = counted
    number = x.dtype.type
    whole = left <= -PW and (OW - 1) * SW - PW + (KW - 1) * DW < right
    for row in prange(y.shape[0]):
        source, target = x[row], y[row]
        rows = _inside(row % OH * SH - PH, DH, KH, top, bottom)
        if whole:
            for i in range(target.size):
                target[i] = source[i] / number(rows * KW)
            continue
        for j in range(OW):
            count = number(rows * _inside(j * SW - PW, DW, KW, left, right))
            for i in range(j * B, (j + 1) * B):
                target[i] = source[i] / count


@Kernel
def _global_avg_pool(x, wide, threads, y):
    """y = mean of x over S; x (A, S, B), y (A, B), wide (threads B,) in float64."""
    A, S, B = x.shape
    for t in prange(threads):
        first, last = bounds(t, threads, A)
        total = wide[t * B : (t + 1) * B]
        for a in range(first, last):
            if B == 1:
                total[0], _ = sum_squares(x[a].reshape(-1), 0, S, 0.0)
            else:
                total[:] = 0.0
                for s in range(S):
                    source = x[a, s]
                    for j in range(B):
                        total[j] += source[j]
            for j in range(B):
                y[a, j] = total[j] / S


@Kernel
def _global_avg_pool_backward(dy, dx):
    """dx = dy / S; dy (A, B), dx (A, S, B)."""
    A, S, B = dx.shape
    for a in prange(A):
        if B == 1:
            dx[a] = dy[a, 0] / dx.dtype.type(S)
        else:
            for s in range(S):
                source, target = dy[a], dx[a, s]
                for j in range(B):
                    target[j] = source[j] / dx.dtype.type(S)


# ---------------------------------------------------------------- launchers


def _rows(*images):
    """View images (A, H, W, B) as rows (A H, W B)."""
    return [a.reshape(a.shape[0] * a.shape[1], a.shape[2] * a.shape[3]) for a in images]


def _sizes(x, y):
    """(B, H, W, OH, OW) of images and outputs."""
    return (x.shape[3], *x.shape[1:3], *y.shape[1:3])


def max_pool(x, window, y, index):
    """Maximum of each window and which of its taps has it."""
    rows, *outputs = _rows(x, y, index)
    _max_pool(workers(x.size), rows, _sizes(x, y), window, *outputs)


def max_pool_backward(dy, index, window, dx):
    """Give each window's gradient to its maximum."""
    threads = workers(dx.size)
    sizes, (gradient, taps, target) = _sizes(dx, dy), _rows(dy, index, dx)
    if dx.shape[3] == 1:
        places = scratch(window[0] * window[1], 0, dx.dtype)[0].view(np.int64)
        _max_pool_backward_planes(threads, gradient, taps, sizes, window, places, target)
    else:
        _max_pool_backward(threads, gradient, taps, sizes, window, target)


def max_pool_take(x, index, window, y):
    """Pick what an index of maxima names."""
    images, taps, target = _rows(x, index, y)
    _max_pool_take(workers(x.size), images, taps, _sizes(x, y), window, target)


def avg_pool(x, window, counted, y):
    """Mean of each window, over the pixels that are counted."""
    threads = workers(x.size)
    sizes, (images, total) = _sizes(x, y), _rows(x, y)
    _window_sums(threads, images, sizes, window, total)
    _over_counts(threads, total, sizes, window, counted, total)


def avg_pool_backward(dy, window, counted, share, dx):
    """Spread each window's gradient evenly; share, of dy's shape, is for what a pixel gets."""
    threads = workers(dx.size)
    sizes, (gradient, part, target) = _sizes(dx, dy), _rows(dy, share, dx)
    _over_counts(threads, gradient, sizes, window, counted, part)
    _spread(threads, part, sizes, window, target)


def global_avg_pool(x, y):
    """Mean of each channel of each image: x (A, S, B), y (A, B)."""
    threads = workers(x.size)
    wide = scratch(threads * y.shape[1], 0, x.dtype)[0]
    _global_avg_pool(threads, x, wide, threads, y)


def global_avg_pool_backward(dy, dx):
    """Spread the gradient of each mean: dy (A, B), dx (A, S, B)."""
    _global_avg_pool_backward(workers(dx.size), dy, dx)
