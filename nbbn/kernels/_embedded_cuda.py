"""Building blocks for users' own CUDA kernels (`nbbn.jit_cuda`): the reductions, for numbers.

nbbn's kernels reduce lanes of several values at once; here each thread has one lane.
"""

from numba import cuda

from ._cuda import device_function
from ._cuda_lanes import lane, lanes
from ._cuda_reduction import merge_moments, moments_over_block


@device_function
def push(n, mean, m2, value):
    """Take one more value into (n, mean, M2), by Welford's update.

    Parameters
    ----------
    n : int
        Values so far.
    mean, m2 : float
        Their mean and sum of squared deviations.
    value : float

    Returns
    -------
    n, mean, m2

    References
    ----------
    Welford, "Note on a Method for Calculating Corrected Sums of Squares and Products" (1962).
    """
    n += 1
    delta = value - mean
    mean += delta / n
    return n, mean, m2 + delta * (value - mean)


@device_function
def merge(n, mean, m2, other_n, other_mean, other_m2):
    """Merge two samples' (n, mean, M2), as if seen in one.

    Parameters
    ----------
    n, other_n : int
        Values in each sample; 0 is allowed.
    mean, m2, other_mean, other_m2 : float
        Their means and sums of squared deviations.

    Returns
    -------
    n, mean, m2

    References
    ----------
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances" (1979).
    """
    n, a, b = merge_moments(
        n, lanes(mean, 1), lanes(m2, 1), other_n, lanes(other_mean, 1), lanes(other_m2, 1)
    )
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
        Their mean and sum of squared deviations, of the type of the shared arrays.

    Returns
    -------
    n, mean, m2

    Notes
    -----
    All threads of the block must call it. The block has one or two dimensions, and a number of
    threads that is a power of two.
    """
    n, a, b = moments_over_block((means, m2s, counts), 1, n, lanes(mean, 1), lanes(m2, 1))
    # All threads have read the result before anybody writes to the scratch again.
    cuda.syncthreads()
    return n, lane(a, 0), lane(b, 0)
