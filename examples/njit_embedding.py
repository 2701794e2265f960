"""Batch normalization inside jitted code: a feature normalizer for a stream that is read once.

Sensors deliver chunks of uneven length. One compiled pass over each chunk extends exact statistics
of all that was seen, by Chan's merge, and normalizes the chunk with them. At the end the statistics
of several streams, taken by parallel threads, merge into one. The caller's functions are compiled
and cached (`cache=True`) with nbbn's inside.

Run it: python examples/njit_embedding.py [--smoke]
"""

import sys

import numpy as np
from numba import njit, prange

from nbbn import jit

CHANNELS = 8
CHUNKS = 20 if "--smoke" in sys.argv else 2000


@njit(cache=True, nogil=True)
def follow(chunk, count, mean, var, chunk_mean, chunk_var, prepared, out):
    """Extend the statistics by a chunk (M, C), then normalize it with them into `out`."""
    values = jit.channel_stats(chunk, chunk_mean, chunk_var)
    count = jit.merge_stats(count, mean, var, values, chunk_mean, chunk_var)
    jit.affine(mean, var, None, None, 1e-8, prepared)
    jit.normalize(chunk, prepared, out)
    return count


class Normalizer:
    """Statistics of all that was seen, exact whatever the chunks.

    Parameters
    ----------
    channels : int
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean, self.var, *self._chunk = np.zeros((4, channels))
        self._prepared = np.empty(3 * channels, np.float32)

    def __call__(self, chunk: np.ndarray) -> np.ndarray:
        """Take in a chunk (M, C) and return it normalized with all values so far, its own too."""
        out = np.empty_like(chunk)
        self.count = follow(
            chunk, self.count, self.mean, self.var, *self._chunk, self._prepared, out
        )
        return out


@njit(parallel=True, cache=True)
def stats_of_streams(streams, mean, var):
    """Statistics of each stream (K, M, C), one thread per stream."""
    for k in prange(streams.shape[0]):
        jit.channel_stats(streams[k], mean[k], var[k])


rng = np.random.default_rng(0)
offset = rng.uniform(1e4, 1e6, CHANNELS)
chunks = [
    (offset + rng.standard_normal((int(rng.integers(1, 400)), CHANNELS))).astype(np.float32)
    for _ in range(CHUNKS)
]

normalizer = Normalizer(CHANNELS)
for chunk in chunks:
    last = normalizer(chunk)

everything = np.concatenate(chunks).astype(np.float64)
worst_mean = np.abs(normalizer.mean - everything.mean(axis=0)).max()
worst_var = np.abs(normalizer.var / everything.var(axis=0) - 1).max()
print(
    f"{CHUNKS} chunks, {normalizer.count} rows; offsets up to {offset.max():.0f} times the signal"
)
print(f"against NumPy on all rows at once: mean {worst_mean:.1e}, variance {worst_var:.1e}")
assert worst_mean < 1e-8
assert worst_var < 1e-6

streams = np.stack([everything[k::4][: len(everything) // 4] for k in range(4)])
means, variances = np.empty((2, 4, CHANNELS))
stats_of_streams(streams, means, variances)
count, mean, var = 0, np.zeros(CHANNELS), np.zeros(CHANNELS)
for k in range(4):
    count = jit.merge_stats(count, mean, var, streams.shape[1], means[k], variances[k])
print(
    f"four streams by parallel threads, merged: {count} rows, mean off by "
    f"{np.abs(mean - streams.mean(axis=(0, 1))).max():.1e}"
)
assert np.allclose(var, streams.var(axis=(0, 1)), rtol=1e-6)
