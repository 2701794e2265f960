"""Sums over blocks and grids on a CUDA device, in an order that the shape alone fixes.

Threads walk through rows (M, C), a tile of columns for each x of the grid, or through the planes
(N, C, S) of one channel for each x. All blocks of one x advance together, so that the grid sweeps
memory from front to back; walking backwards then finds the end of the array still in cache.

Each thread brings a count n and a pair (a, b) of lanes. Threads whose positions in the block agree
modulo `stop` belong together: those of one column of threads in rows, all of them (stop = 1) in
planes. They merge pairwise in shared memory. Where several blocks work on the same sums, each
leaves its part in memory and takes a ticket, and the last one merges the parts, in their order.
Nothing is added up by atomics, so the bits are the same every time.
"""

import functools

from numba import cuda, int64, uint32

from . import _cuda
from ._cuda import Kernel, accumulator, device_function, scratch, vector_width
from ._cuda_lanes import (
    choose,
    finite_part,
    lane,
    lane_sum,
    lanes,
    load,
    load_any,
    load_fresh,
    positive_part,
    spread,
    store,
    store_any,
    width,
)

# Elements of a thread that are summed in one go, before their sum goes into the next.
RUN = 128
# Threads side by side in a row, and the fewest steps that make another block worth while.
_TILE, _NARROW_TILE = 16, 8
_STEPS = 8
# Up to so many rows, one block does all of a tile.
_FEW_ROWS = 512


# ---------------------------------------------------------------- walks


@device_function
def walk_rows(N, C, V):
    """(channel, first index, count, count, step, 0) of this thread in rows (N, C)."""
    c = (cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x) * V
    first = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    stride = cuda.gridDim.y * cuda.blockDim.y
    count = max(N - first + stride - 1, 0) // stride if c < C else 0
    return c, first * C + c, count, count, stride * C, 0


@device_function
def walk_planes(N, C, S, V):
    """(channel, first index, count, inner, step, jump) of this thread in planes (N, C, S).

    Every `inner` steps, the thread goes on to its next plane by a jump instead.
    """
    c = cuda.blockIdx.x
    n = cuda.blockIdx.y * cuda.blockDim.y + cuda.threadIdx.y
    s = (cuda.blockIdx.z * cuda.blockDim.x + cuda.threadIdx.x) * V
    stride = cuda.gridDim.y * cuda.blockDim.y
    step = cuda.gridDim.z * cuda.blockDim.x * V
    outer = max(N - n + stride - 1, 0) // stride
    inner = max(S - s + step - 1, 0) // step
    jump = stride * C * S - (inner - 1) * step
    return c, (n * C + c) * S + s, outer * inner, inner, step, jump


@device_function
def step_on(i, b, inner, step, jump):
    """The next index, and the number of steps since the last jump."""
    if b + 1 == inner:
        return i + jump, 0
    return i + step, b + 1


@device_function
def last_index(i, count, inner, step, jump):
    """Where a walk of at least one step ends."""
    outer = count // inner
    return i + (inner - 1) * step * outer + (outer - 1) * jump


def rows_grid(M, C, V):
    """Grid and block for rows (M, C)."""
    return _rows_grid(M, C, V, _cuda.THREADS, _cuda.BLOCKS)


@functools.lru_cache(maxsize=512)
def _rows_grid(M, C, V, threads, blocks):
    few = M <= _FEW_ROWS
    vectors = -(-C // V)
    x = min(_NARROW_TILE if few else _TILE, _power_of_two(vectors), threads)
    y = threads // x
    tiles = -(-vectors // x)
    parts = 1 if few else max(1, min(blocks // tiles, M // (_STEPS * y)))
    return (tiles, parts, 1), (x, y)


def planes_grid(N, C, S, V):
    """Grid and block for planes (N, C, S)."""
    return _planes_grid(N, C, S, V, _cuda.THREADS, _cuda.BLOCKS)


@functools.lru_cache(maxsize=512)
def _planes_grid(N, C, S, V, threads, blocks):
    vectors = S // V
    warp = min(32, _power_of_two(vectors), threads)
    y = min(_power_of_two(N), threads // warp)
    x = threads // y
    parts = max(1, min(blocks // C, N * vectors // (_STEPS * threads)))
    n_parts = max(1, min(N // y, parts))
    s_parts = max(1, min(vectors // x, parts // n_parts))
    return (C, n_parts, s_parts), (x, y)


def _power_of_two(number):
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()


# ---------------------------------------------------------------- reductions


@device_function
def position():
    """Number of this thread in its block."""
    return cuda.threadIdx.y * cuda.blockDim.x + cuda.threadIdx.x


@device_function
def over_row(memory, value, greatest):
    """Sum, or maximum where `greatest`, of the lanes of the threads that share a row."""
    x, p = cuda.threadIdx.x, position()
    store(memory, p, value)
    cuda.syncthreads()
    half = cuda.blockDim.x // 2
    while half > 0:
        if x < half:
            other = load(memory, p + half, value)
            value = choose(other - value, other, value) if greatest else value + other
            store(memory, p, value)
        cuda.syncthreads()
        half //= 2
    value = load(memory, p - x, value)
    cuda.syncthreads()
    return value


@device_function
def merge_moments(n, mean, m2, other_n, other_mean, other_m2):
    """Chan's formula for (mean, M2); an infinite mean stays infinite."""
    total = spread(max(n + other_n, 1), mean)
    share, other_share = spread(n, mean) / total, spread(other_n, mean) / total
    delta = other_mean - mean
    m2 = (m2 + other_m2) + delta * delta * (spread(n, mean) * other_share)
    return n + other_n, mean * share + other_mean * other_share, m2


@device_function
def merge_sums(n, a, b, other_n, other_a, other_b):
    """Counts and sums add up."""
    return n + other_n, a + other_a, b + other_b


@device_function
def walk_moments(x, i, count, inner, step, jump, reference):
    """(mean - reference, M2) of a walk through x."""
    zero = spread(0, reference)
    n, b, mean, m2 = 0, 0, zero, zero
    while n < count:
        length = min(count - n, RUN)
        shift = finite_part(load(x, i, zero))
        total, square = zero, zero
        for _ in range(length):
            d = load(x, i, zero) - shift
            total = total + d
            square = square + d * d
            i, b = step_on(i, b, inner, step, jump)
        offset = total / spread(length, zero)
        spread_out = positive_part(square - total * offset)
        center = (shift - reference) + offset
        n, mean, m2 = merge_moments(n, mean, m2, length, center, spread_out)
    return mean, m2


@device_function
def merge_lanes(n, mean, m2):
    """Moments of all lanes together, each of n elements."""
    V = lane_sum(spread(1, mean))
    center = lane_sum(mean) / V
    delta = mean - center
    return center, lane_sum(m2 + delta * delta * spread(n, mean))


def shared_memory(V, acc):
    """Make a device function that returns a block's memory for a reduction: (a, b, counts)."""
    threads, size = _cuda.THREADS, _cuda.THREADS * V

    @device_function
    def memory():
        """Memory for lanes a and b and the count of each thread."""
        a = cuda.shared.array(size, acc)
        b = cuda.shared.array(size, acc)
        counts = cuda.shared.array(threads, int64)
        return a, b, counts

    return memory


def _make_reduction(merge):
    """Make a device function that reduces over a block, and one that reduces over the grid."""

    @device_function
    def over_block(memory, stop, n, a, b):
        """Reduce over this block: (n, a, b), the same for all threads that belong together.

        A barrier must come before the memory is written again.
        """
        memory_a, memory_b, counts = memory
        p, V = position(), width(a)
        store_any(memory_a, p * V, a)
        store_any(memory_b, p * V, b)
        counts[p] = n
        cuda.syncthreads()
        half = cuda.blockDim.x * cuda.blockDim.y // 2
        while half >= stop:
            if p < half:
                q = p + half
                other_a, other_b = load_any(memory_a, q * V, a), load_any(memory_b, q * V, b)
                n, a, b = merge(n, a, b, counts[q], other_a, other_b)
                store_any(memory_a, p * V, a)
                store_any(memory_b, p * V, b)
                counts[p] = n
            cuda.syncthreads()
            half //= 2
        p %= stop
        return counts[p], load_any(memory_a, p * V, a), load_any(memory_b, p * V, b)

    @device_function
    def over_grid(memory, stop, partials, tickets, n, a, b):
        """Reduce over all blocks of this x: (whether this block has the result, n, a, b)."""
        n, a, b = over_block(memory, stop, n, a, b)
        tile, parts = cuda.blockIdx.x, cuda.gridDim.y * cuda.gridDim.z
        if parts == 1:
            return True, n, a, b
        p, V = position(), width(a)
        row = stop * V
        if p < stop:
            part = cuda.blockIdx.y * cuda.gridDim.z + cuda.blockIdx.z
            start = (tile * parts + part) * 3 * row + p * V
            store(partials, start, a)
            store(partials, start + row, b)
            store(partials, start + 2 * row, spread(n, a))
        cuda.threadfence()
        cuda.syncthreads()
        counts = memory[2]
        if p == 0:
            # The ticket goes back to zero with the last block.
            counts[0] = cuda.atomic.inc(tickets, tile, uint32(parts - 1))
        cuda.syncthreads()
        last = counts[0] == parts - 1
        cuda.syncthreads()
        if last:
            cuda.threadfence()
            n, a, b = 0, spread(0, a), spread(0, b)
            part = p // stop
            while part < parts:
                start = (tile * parts + part) * 3 * row + p % stop * V
                other_n = int64(lane(load_fresh(partials, start + 2 * row, a), 0))
                other_a = load_fresh(partials, start, a)
                other_b = load_fresh(partials, start + row, b)
                n, a, b = merge(n, a, b, other_n, other_a, other_b)
                part += cuda.blockDim.x * cuda.blockDim.y // stop
            n, a, b = over_block(memory, stop, n, a, b)
        return last, n, a, b

    return over_block, over_grid


moments_over_block, moments_over_grid = _make_reduction(merge_moments)
sums_over_block, sums_over_grid = _make_reduction(merge_sums)


# ---------------------------------------------------------------- numbers of channels


@device_function
def of_channels(values, c, planes, like):
    """Per-channel numbers (C,) for the lanes from channel c on; all of one channel in planes."""
    return spread(values[c], like) if planes else load_any(values, c, like)


@device_function
def keep(values, c, planes, v):
    """Write per-channel numbers (C,); in planes, all lanes hold the same."""
    if planes:
        values[c] = lane(v, 0)
    else:
        store_any(values, c, v)


# ---------------------------------------------------------------- sums of columns


@Kernel
def _column_sums(V, acc):
    """Sum over rows: x (M, C), total (C,)."""
    shared = shared_memory(V, acc)

    def kernel(x, M, C, partials, tickets, total):
        memory = shared()
        zero = lanes(acc(0), V)
        c, i, count, _, step, _ = walk_rows(M, C, V)
        a, n = zero, 0
        while n < count:
            end, run = min(n + RUN, count), zero
            while n < end:
                run = run + load(x, i, zero)
                i += step
                n += 1
            a = a + run
        stop = cuda.blockDim.x
        last, n, a, _ = sums_over_grid(memory, stop, partials, tickets, n, a, zero)
        if last and position() < stop and c < C:
            store_any(total, c, a)

    return kernel


def column_sums(x, total):
    """Sum over the rows of x (M, C), into total (C,)."""
    M, C = x.shape
    V, acc = vector_width(C, x), accumulator(x.dtype)
    _column_sums[V, acc](*rows_grid(M, C, V), x, M, C, *scratch(acc), total)
