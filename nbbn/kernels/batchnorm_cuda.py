"""Batch normalization on a CUDA device, for `(M, C)` rows and `(N, C, S)` planes.

Training forward: one launch for the statistics, and one that normalizes; where one block has all
of a channel, the first does both. A thread sums deviations from a value of its own run of elements;
runs, threads and blocks merge by Chan's formula, with means relative to the first element of the
channel. So |mean| >> std costs no digits of the variance.

Everything is computed in float32, in float64 for float64 arrays: no float64 instruction works on
narrower data, and so the statistics (C,) are of that type too. x, residual, y, dy and dx are stored
as float32, float64, float16 or bfloat16 (as uint16); gamma, beta and their gradients are of the
statistics' type.

The launch that normalizes walks backwards: what was read last is still in cache. An empty array
stands for "not given" in residual, gamma, beta and y.
"""

from numba import cuda, int64

from . import _cuda
from ._cuda import Elementwise, Kernel, accumulator, device_function, scalar, scratch, vector_width
from ._cuda_lanes import (
    choose,
    finite_part,
    lane,
    lane_sum,
    lanes,
    load,
    positive_part,
    spread,
    sqrt,
    store,
    width,
)
from ._cuda_reduction import (
    RUN,
    keep,
    last_index,
    merge_lanes,
    moments_over_grid,
    of_channels,
    planes_grid,
    position,
    rows_grid,
    shared_memory,
    step_on,
    sums_over_grid,
    walk_moments,
    walk_planes,
    walk_rows,
)

# ---------------------------------------------------------------- kernels: what both layouts share


@device_function
def _walk(planes, N, C, S, V):
    """The walk of this thread: see `_cuda_reduction`."""
    return walk_planes(N, C, S, V) if planes else walk_rows(N, C, V)


@device_function
def _normalize_walk(x, residual, y, i, count, inner, step, jump, shift, scale, offset, relu):
    """y = relu((x - shift) * scale + offset + residual) along a walk, backwards, two at a time."""
    if count == 0:
        return
    i, b = last_index(i, count, inner, step, jump), 0
    for k in range(0, count, 2):
        j, b = step_on(i, b, inner, -step, -jump)
        if k + 1 == count:
            # Nothing is left for the second: it does the first's work again.
            j = i
        u = (load(x, i, shift) - shift) * scale + offset
        v = (load(x, j, shift) - shift) * scale + offset
        if residual.size > 0:
            u, v = u + load(residual, i, shift), v + load(residual, j, shift)
        if relu:
            u, v = positive_part(u), positive_part(v)
        store(y, i, u)
        store(y, j, v)
        i, b = step_on(j, b, inner, -step, -jump)


@device_function
def _affine(gamma, beta, c, planes, inv_std):
    """(scale, offset) of channel c for inputs without their mean."""
    scale, offset = inv_std, spread(0, inv_std)
    if gamma.size > 0:
        scale = scale * of_channels(gamma, c, planes, inv_std)
    if beta.size > 0:
        offset = of_channels(beta, c, planes, inv_std)
    return scale, offset


@device_function
def _gradient_sums(dy, x, y, i, count, inner, step, jump, shift):
    """(sum of g, sum of g * (x - shift)) along a walk, g being dy where y > 0."""
    zero = spread(0, shift)
    n, b, a, p = 0, 0, zero, zero
    while n < count:
        length = min(count - n, RUN)
        total, product = zero, zero
        for _ in range(length):
            g = load(dy, i, zero)
            if y.size > 0:
                g = choose(load(y, i, zero), g, zero)
            total = total + g
            product = product + g * (load(x, i, zero) - shift)
            i, b = step_on(i, b, inner, step, jump)
        a, p = a + total, p + product
        n += length
    return a, p


@device_function
def _gradient_walk(dy, x, y, dx, i, count, inner, step, jump, shift, scale, slope, level, fixed):
    """dx = scale * (g + slope * (x - shift) + level) along a walk, backwards, two at a time.

    Fixed statistics pass scale * g, whatever x is.
    """
    if count == 0:
        return
    i, b = last_index(i, count, inner, step, jump), 0
    zero = spread(0, shift)
    for k in range(0, count, 2):
        j, b = step_on(i, b, inner, -step, -jump)
        if k + 1 == count:
            j = i
        g, h = load(dy, i, zero), load(dy, j, zero)
        if y.size > 0:
            g, h = choose(load(y, i, zero), g, zero), choose(load(y, j, zero), h, zero)
        if not fixed:
            u, v = load(x, i, zero) - shift, load(x, j, zero) - shift
            g, h = g + (slope * u + level), h + (slope * v + level)
        store(dx, i, scale * g)
        store(dx, j, scale * h)
        i, b = step_on(j, b, inner, -step, -jump)


@device_function
def _gradient_affine(gamma, c, planes, inv_std, sum_g, sum_g_x_hat, count, fixed):
    """(scale, slope, level) of the gradient with respect to the input."""
    scale, _ = _affine(gamma, gamma, c, planes, inv_std)
    zero, size = spread(0, inv_std), spread(count, inv_std)
    if fixed:
        return scale, zero, zero
    return scale, zero - inv_std * (sum_g_x_hat / size), zero - sum_g / size


# ---------------------------------------------------------------- kernels


@Kernel
def _train(V, acc, planes):
    """Statistics; x (N, C, S), S = 1 for rows. Normalizes too where a block has whole channels."""
    shared = shared_memory(V, acc)

    def kernel(
        x, residual, gamma, beta, N, C, S, eps, relu, partials, tickets, y, mean, var, inv_std
    ):
        memory = shared()
        zero = lanes(acc(0), V)
        c, i, count, inner, step, jump = _walk(planes, N, C, S, V)
        reference = zero
        if planes:
            reference = spread(lane(finite_part(load(x, c * S, zero)), 0), zero)
        elif c < C:
            reference = finite_part(load(x, c, zero))
        a, b = walk_moments(x, i, count, inner, step, jump, reference)
        stop = 1 if planes else cuda.blockDim.x
        last, n, a, b = moments_over_grid(memory, stop, partials, tickets, count, a, b)
        if not last or c >= C:
            return
        if planes:
            a, b = merge_lanes(n, a, b)
        total = spread(N * S, zero)
        center, variance = reference + a, b / total
        inverse = spread(1, zero) / sqrt(variance + eps)
        if position() < stop:
            keep(mean, c, planes, center)
            keep(var, c, planes, variance)
            keep(inv_std, c, planes, inverse)
        if cuda.gridDim.y * cuda.gridDim.z == 1:
            scale, offset = _affine(gamma, beta, c, planes, inverse)
            _normalize_walk(
                x, residual, y, i, count, inner, step, jump, center, scale, offset, relu
            )

    return kernel


@Kernel
def _normalize(V, acc, planes):
    """y = relu(gamma * (x - mean) / sqrt(var + eps) + beta + residual); x, y (N, C, S)."""

    def kernel(x, residual, gamma, beta, mean, var, N, C, S, eps, relu, y):
        zero = lanes(acc(0), V)
        c, i, count, inner, step, jump = _walk(planes, N, C, S, V)
        if c < C:
            inverse = spread(1, zero) / sqrt(of_channels(var, c, planes, zero) + eps)
            scale, offset = _affine(gamma, beta, c, planes, inverse)
            shift = of_channels(mean, c, planes, zero)
            _normalize_walk(x, residual, y, i, count, inner, step, jump, shift, scale, offset, relu)

    return kernel


@Kernel
def _backward(V, acc, planes):
    """dgamma, dbeta (C,); dy, x, y (N, C, S). And dx, where a block has whole channels."""
    shared = shared_memory(V, acc)

    def kernel(
        dy, x, y, gamma, mean, inv_std, N, C, S, fixed, partials, tickets, dx, dgamma, dbeta
    ):
        memory = shared()
        zero = lanes(acc(0), V)
        c, i, count, inner, step, jump = _walk(planes, N, C, S, V)
        shift = of_channels(mean, c, planes, zero) if c < C else zero
        a, b = _gradient_sums(dy, x, y, i, count, inner, step, jump, shift)
        stop = 1 if planes else cuda.blockDim.x
        last, _, a, b = sums_over_grid(memory, stop, partials, tickets, count, a, b)
        if not last or c >= C:
            return
        if planes:
            a, b = lane_sum(a), lane_sum(b)
        inverse = of_channels(inv_std, c, planes, zero)
        b = b * inverse
        if position() < stop:
            keep(dbeta, c, planes, a)
            keep(dgamma, c, planes, b)
        if cuda.gridDim.y * cuda.gridDim.z == 1:
            scale, slope, level = _gradient_affine(gamma, c, planes, inverse, a, b, N * S, fixed)
            _gradient_walk(
                dy, x, y, dx, i, count, inner, step, jump, shift, scale, slope, level, fixed
            )

    return kernel


@Kernel
def _input_gradient(V, acc, planes):
    """dx from the sums that are in dgamma and dbeta; dy, x, y, dx (N, C, S)."""

    def kernel(dy, x, y, gamma, mean, inv_std, dgamma, dbeta, N, C, S, fixed, dx):
        zero = lanes(acc(0), V)
        c, i, count, inner, step, jump = _walk(planes, N, C, S, V)
        if c < C:
            a, b = of_channels(dbeta, c, planes, zero), of_channels(dgamma, c, planes, zero)
            inverse = of_channels(inv_std, c, planes, zero)
            scale, slope, level = _gradient_affine(gamma, c, planes, inverse, a, b, N * S, fixed)
            shift = of_channels(mean, c, planes, zero)
            _gradient_walk(
                dy, x, y, dx, i, count, inner, step, jump, shift, scale, slope, level, fixed
            )

    return kernel


@Elementwise
def _inverse_std(i, like, operands):
    """inv_std = 1 / sqrt(var + eps); var, inv_std (C,)."""
    var, eps, inv_std = operands
    store(inv_std, i, spread(1, like) / sqrt(load(var, i, like) + eps))


@device_function
def _move(running, value, momentum):
    """The running number moved towards the batch's by `momentum`."""
    return running + momentum * (value - running)


@Elementwise
def _update_running(i, like, operands):
    """Move the running statistics (C,) towards the batch's by `momentum`, in place."""
    mean, var, correction, momentum, running_mean, running_var = operands
    for j in range(i, i + width(like)):
        running_mean[j] = _move(running_mean[j], mean[j], momentum)
        running_var[j] = _move(running_var[j], var[j] * correction, momentum)


@Kernel
def _update_running_within():
    """Running-statistics update (C,) where all is finite and within `limit`. One block."""

    def kernel(mean, var, correction, momentum, limit, running_mean, running_var, skipped):
        outside = cuda.shared.array(1, int64)
        first = cuda.threadIdx.x
        if first == 0:
            outside[0] = 0
        cuda.syncthreads()
        for j in range(first, mean.size, cuda.blockDim.x):
            # A NaN fails every comparison.
            if not (abs(mean[j]) <= limit and var[j] * correction <= limit):
                outside[0] = 1
        cuda.syncthreads()
        if outside[0] == 0:
            for j in range(first, mean.size, cuda.blockDim.x):
                running_mean[j] = _move(running_mean[j], mean[j], momentum)
                running_var[j] = _move(running_var[j], var[j] * correction, momentum)
        elif first == 0:
            skipped[0] += 1

    return kernel


# ---------------------------------------------------------------- launchers


class _Plan:
    """How to launch over x (M, C) or (N, C, S) and the arrays of its shape."""

    def __init__(self, x, *others):
        self.planes = x.ndim == 3
        self.shape = tuple(map(int, x.shape)) if self.planes else (*map(int, x.shape), 1)
        N, C, S = self.shape
        V = vector_width(S if self.planes else C, x, *others)
        self.acc = accumulator(x.dtype)
        self.grid = planes_grid(N, C, S, V) if self.planes else rows_grid(N, C, V)
        self.whole = self.grid[0][1:] == (1, 1)
        self._constants = V, self.acc, self.planes

    def run(self, kernel, *args):
        """Launch a kernel."""
        kernel[self._constants](*self.grid, *args)


def train(x, residual, gamma, beta, eps, relu, y, mean, var, inv_std):
    """Normalize x with its own statistics; fills y, mean, var (biased) and inv_std."""
    plan = _Plan(x, residual, y)
    operands, eps = (x, residual, gamma, beta), scalar(eps, plan.acc)
    relu = int(relu)
    plan.run(_train, *operands, *plan.shape, eps, relu, *scratch(plan.acc), y, mean, var, inv_std)
    if not plan.whole:
        plan.run(_normalize, *operands, mean, var, *plan.shape, eps, relu, y)


def infer(x, residual, gamma, beta, mean, var, eps, relu, y):
    """Normalize x with the given statistics; fills y."""
    plan = _Plan(x, residual, y)
    eps = scalar(eps, plan.acc)
    plan.run(_normalize, x, residual, gamma, beta, mean, var, *plan.shape, eps, int(relu), y)


def backward(dy, x, y, gamma, mean, inv_std, fixed, dx, dgamma, dbeta):
    """Gradients of `train`, or of `infer` where `fixed`."""
    plan = _Plan(x, dy, y, dx)
    operands, fixed = (dy, x, y, gamma, mean, inv_std), int(fixed)
    sums = dgamma, dbeta
    plan.run(_backward, *operands, *plan.shape, fixed, *scratch(plan.acc), dx, *sums)
    if not plan.whole:
        plan.run(_input_gradient, *operands, *sums, *plan.shape, fixed, dx)


def inverse_std(var, eps, inv_std):
    """1 / sqrt(var + eps), per channel."""
    _inverse_std(var, scalar(eps, accumulator(var.dtype)), inv_std, aligned=(var, inv_std))


def _numbers(mean, count, momentum, unbiased, running, *more):
    """The factor of the variance, the momentum and more, in the wider of both statistics' types."""
    acc = accumulator(max(mean.dtype, running.dtype))
    correction = count / (count - 1.0) if unbiased else 1.0
    return tuple(scalar(number, acc) for number in (correction, float(momentum), *more))


def update_running(mean, var, count, momentum, unbiased, running_mean, running_var):
    """Running-statistics update, in place."""
    numbers = _numbers(mean, count, momentum, unbiased, running_mean)
    aligned = mean, var, running_mean, running_var
    _update_running(mean, var, *numbers, running_mean, running_var, aligned=aligned)


def update_running_within(
    mean, var, count, momentum, unbiased, limit, running_mean, running_var, skipped
):
    """Running-statistics update that counts a batch beyond `limit` and leaves it out."""
    numbers = _numbers(mean, count, momentum, unbiased, running_mean, limit)
    arrays = running_mean, running_var, skipped
    _update_running_within[()]((1,), (_cuda.THREADS, 1), mean, var, *numbers, *arrays)
