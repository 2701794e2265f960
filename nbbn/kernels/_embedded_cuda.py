"""Building blocks for users' own CUDA kernels (`nbbn.jit_cuda`): the reductions, for numbers.

nbbn's kernels reduce lanes of several values at once; here each thread has one lane.
"""

from numba import cuda

from ._cuda import device_function
from ._cuda_lanes import lane, lanes, load_any, spread
from ._cuda_reduction import merge_moments, moments_over_block, position


@device_function
def push(n, mean, m2, value):
    """Take one more value into the count, mean and M2 of a thread, and return the three.

    Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products" (1962).
    """
    n += 1
    delta = value - mean
    # In numba, a float32 over an int is a float64.
    one = lanes(delta, 1)
    mean += lane(one / spread(n, one), 0)
    return n, mean, m2 + delta * (value - mean)


@device_function
def merge(n, mean, m2, other_n, other_mean, other_m2):
    """Merge the counts, means and M2 of two samples, as if seen in one; either may be empty.

    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances" (1979).
    """
    # Only its type matters: the widest of the four.
    like = lanes(mean + m2 + other_mean + other_m2, 1)
    n, a, b = merge_moments(
        n, spread(mean, like), spread(m2, like),
        other_n, spread(other_mean, like), spread(other_m2, like),
    )  # fmt: skip
    return n, lane(a, 0), lane(b, 0)


@device_function
def merge_over_block(means, m2s, counts, n, mean, m2):
    """Merge the samples of all threads of a block; every thread gets the result.

    Parameters
    ----------
    means, m2s : shared array of float32 or float64, one element per thread of the block
    counts : shared array of int64, one element per thread of the block
        Scratch, free again afterwards.
    n : int
        Values that this thread has seen; 0 is allowed.
    mean, m2 : float
        Their mean and sum of squared deviations.

    Returns
    -------
    n, mean, m2
        The floats are of the type of the shared arrays, as is the arithmetic.

    Notes
    -----
    All threads of the block must call it. The block has one or two dimensions, and a number of
    threads that is a power of two.
    """
    p = position()
    means[p], m2s[p] = mean, m2
    a, b = load_any(means, p, lanes(mean, 1)), load_any(m2s, p, lanes(m2, 1))
    n, a, b = moments_over_block((means, m2s, counts), 1, n, a, b)
    # All threads have read the result before anybody writes to the scratch again.
    cuda.syncthreads()
    return n, lane(a, 0), lane(b, 0)
