"""Layer, RMS, group and instance normalization on a CUDA device: x (N, G, D, S).

One block has a run, the D * S consecutive elements of one (n, g), and reads it twice; the gradients
of gamma and beta are a launch of their own, over the rows (N, C) or the planes (N, C, S) of the
C = G * D channels. Statistics are those of `batchnorm_cuda`: deviations from values of the run,
merged by Chan's formula; about 0 where not `centered`.

Everything is computed in float32, in float64 for float64 arrays, and the statistics (N * G,) are of
that type too. x, y, dy and dx are stored as float32, float64, float16 or bfloat16 (as uint16);
gamma, beta and their gradients are of the statistics' type. An empty array stands for "not given"
in gamma and beta.
"""

from numba import cuda

from . import _cuda
from ._cuda import Kernel, accumulator, device_function, scalar, scratch, vector_width
from ._cuda_lanes import (
    finite_part,
    lane,
    lane_sum,
    lanes,
    load,
    spread,
    sqrt,
    store,
)
from ._cuda_reduction import (
    RUN,
    keep,
    merge_lanes,
    moments_over_block,
    of_channels,
    planes_grid,
    position,
    rows_grid,
    shared_memory,
    step_on,
    sums_over_block,
    sums_over_grid,
    walk_moments,
    walk_planes,
    walk_rows,
)

# ---------------------------------------------------------------- kernels


@device_function
def _own(M, V):
    """(first element, elements, steps, their length) of this thread in its block's run of M."""
    start = cuda.blockIdx.x * M
    first, step = cuda.threadIdx.x * V, cuda.blockDim.x * V
    return start + first, max(M - first + step - 1, 0) // step, step


@device_function
def _channel(k, c0, S, planes):
    """Channel of element k of a run whose first is c0; of the first lane in rows."""
    return c0 + k // S if planes else c0 + k


@device_function
def _sum_squares(x, i, count, step, zero):
    """Sum of the squares of a walk through x."""
    n, a = 0, zero
    while n < count:
        length, total = min(count - n, RUN), zero
        for _ in range(length):
            value = load(x, i, zero)
            total = total + value * value
            i += step
        a = a + total
        n += length
    return a


@Kernel
def _forward_runs(V, acc, planes, centered):
    """x, y (N, G, D, S); gamma, beta (G * D,); mean, var, inv_std (N * G,)."""
    shared = shared_memory(V, acc)

    def kernel(x, gamma, beta, G, D, S, eps, y, mean, var, inv_std):
        memory = shared()
        zero = lanes(acc(0), V)
        r, M = cuda.blockIdx.x, D * S
        i, count, step = _own(M, V)
        # All deviations are from a value of the run, so that no mean costs digits.
        reference, center = zero, zero
        if centered:
            reference = spread(lane(finite_part(load(x, r * M, zero)), 0), zero)
            center, square = walk_moments(x, i, count, count + 1, step, 0, reference)
            n, center, square = moments_over_block(memory, 1, count, center, square)
            center, square = merge_lanes(n, center, square)
        else:
            square = _sum_squares(x, i, count, step, zero)
            _, square, _ = sums_over_block(memory, 1, count, square, zero)
            square = lane_sum(square)
        variance = square / spread(M, zero)
        inverse = spread(1, zero) / sqrt(variance + eps)
        if position() == 0:
            mean[r] = lane(reference + center, 0)
            var[r] = lane(variance, 0)
            inv_std[r] = lane(inverse, 0)
        c0, k = r % G * D, i - r * M
        for _ in range(count):
            value = ((load(x, i, zero) - reference) - center) * inverse
            c = _channel(k, c0, S, planes)
            if gamma.size > 0:
                value = value * of_channels(gamma, c, planes, zero)
            if beta.size > 0:
                value = value + of_channels(beta, c, planes, zero)
            store(y, i, value)
            i += step
            k += step

    return kernel


@device_function
def _scaled(dy, gamma, i, c, planes, zero):
    """The gradient of x_hat at i."""
    h = load(dy, i, zero)
    return h * of_channels(gamma, c, planes, zero) if gamma.size > 0 else h


@Kernel
def _backward_runs(V, acc, planes, centered):
    """dy, x, dx (N, G, D, S); gamma (G * D,); mean, inv_std (N * G,)."""
    shared = shared_memory(V, acc)

    def kernel(dy, x, gamma, mean, inv_std, G, D, S, dx):
        memory = shared()
        zero = lanes(acc(0), V)
        r, M = cuda.blockIdx.x, D * S
        i, count, step = _own(M, V)
        c0, k = r % G * D, i - r * M
        shift, inverse = spread(mean[r], zero), spread(inv_std[r], zero)
        n, a, p = 0, zero, zero
        j = i
        while n < count:
            length, total, product = min(count - n, RUN), zero, zero
            for _ in range(length):
                h = _scaled(dy, gamma, j, _channel(k, c0, S, planes), planes, zero)
                total = total + h
                product = product + h * (load(x, j, zero) - shift)
                j += step
                k += step
            a, p = a + total, p + product
            n += length
        _, a, p = sums_over_block(memory, 1, count, a, p)
        size = spread(M, zero)
        slope = zero - inverse * (lane_sum(p) * inverse / size)
        level = zero
        if centered:
            level = zero - lane_sum(a) / size
        k = i - r * M
        for _ in range(count):
            h = _scaled(dy, gamma, i, _channel(k, c0, S, planes), planes, zero)
            store(dx, i, inverse * (h + (slope * (load(x, i, zero) - shift) + level)))
            i += step
            k += step

    return kernel


@Kernel
def _channel_gradients(V, acc, planes):
    """dgamma, dbeta (G * D,); dy, x (N, G, D, S); mean, inv_std (N * G,)."""
    shared = shared_memory(V, acc)

    def kernel(dy, x, mean, inv_std, N, G, D, S, partials, tickets, dgamma, dbeta):
        memory = shared()
        zero, C = lanes(acc(0), V), G * D
        if planes:
            c, i, count, inner, step, jump = walk_planes(N, C, S, V)
        else:
            c, i, count, _, step, jump = walk_rows(N, C, V)
            # Each step is to another example.
            inner, jump = 1, step
        r = (cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y) * G + c // D
        next_example = cuda.gridDim.y * cuda.blockDim.y * G
        n, b, a, p = 0, 0, zero, zero
        while n < count:
            length, total, product = min(count - n, RUN), zero, zero
            for _ in range(length):
                g = load(dy, i, zero)
                x_hat = (load(x, i, zero) - mean[r]) * inv_std[r]
                total = total + g
                product = product + g * x_hat
                i, b = step_on(i, b, inner, step, jump)
                if b == 0:
                    r += next_example
            a, p = a + total, p + product
            n += length
        stop = 1 if planes else cuda.blockDim.x
        last, _, a, p = sums_over_grid(memory, stop, partials, tickets, count, a, p)
        if last and position() < stop and c < C:
            if planes:
                a, p = lane_sum(a), lane_sum(p)
            keep(dbeta, c, planes, a)
            keep(dgamma, c, planes, p)

    return kernel


# ---------------------------------------------------------------- launchers


def _plan(x, *others):
    """(N, G, D, S), lanes, accumulator, whether a channel has several elements; grid of runs."""
    N, G, D, S = map(int, x.shape)
    planes = S > 1
    V, acc = vector_width(S if planes else D, x, *others), accumulator(x.dtype)
    threads = min(_cuda.THREADS, max(32, 1 << (-(-D * S // V) - 1).bit_length()))
    return (N, G, D, S), V, acc, planes, ((N * G,), (threads, 1))


def normalize(x, gamma, beta, eps, centered, y, mean, var, inv_std):
    """Normalize each run of x; fills y, mean, var (about 0 where not centered) and inv_std."""
    (_, *shape), V, acc, planes, grid = _plan(x, y)
    _forward_runs[V, acc, planes, bool(centered)](
        *grid, x, gamma, beta, *shape, scalar(eps, acc), y, mean, var, inv_std
    )


def normalize_backward(dy, x, gamma, mean, inv_std, centered, dx, dgamma, dbeta):
    """Gradients of `normalize`."""
    (N, *shape), V, acc, planes, grid = _plan(x, dy, dx)
    G, D, S = shape
    # First, as dx may be dy.
    walk = planes_grid(N, G * D, S, V) if planes else rows_grid(N, G * D, V)
    _channel_gradients[V, acc, planes](
        *walk, dy, x, mean, inv_std, N, *shape, *scratch(acc), dgamma, dbeta
    )
    _backward_runs[V, acc, planes, bool(centered)](*grid, dy, x, gamma, mean, inv_std, *shape, dx)
