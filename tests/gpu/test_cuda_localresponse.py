"""Local response normalization in either engine, launcher by launcher, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.kernels import localresponse_cuda
from tests.gpu.storage import (
    DTYPES,
    ROUNDING,
    error,
    poisoned,
    shifted,
    statistics_type,
    stored,
    values,
)


def window_sums(x, before, after):
    """Along the middle axis."""
    padded = np.pad(x, ((0, 0), (before, after), (0, 0)))
    return sum(padded[:, n : n + x.shape[1]] for n in range(before + after + 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 1), (1, 30)])
def test_window_sums(dtype, before, after, schedule):
    rng, wide = np.random.default_rng(3), statistics_type(dtype)
    x, sums = stored(rng.standard_normal((3, 5, 7)), dtype), rng.standard_normal((3, 5, 7))
    sums = sums.astype(wide)
    for source, squared in ((x, True), (sums, False)):
        y = poisoned(x.shape, wide)
        localresponse_cuda.window_sums(source, squared, before, after, y)
        held = values(source) ** 2 if squared else values(source)
        assert error(y, window_sums(held, before, after)) < ROUNDING[np.dtype(wide).name]


@pytest.mark.parametrize("arrange", [np.copy, shifted])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_follows_from_the_sums(dtype, arrange):
    rng, wide = np.random.default_rng(4), statistics_type(dtype)
    x, dy = (arrange(stored(a, dtype)) for a in rng.standard_normal((2, 67)))
    sums, windows = (arrange(a) for a in rng.uniform(0, 9, (2, 67)).astype(wide))
    fine = 2 * ROUNDING[np.dtype(wide).name]
    p, ratio = (arrange(np.zeros(67, wide)) for _ in range(2))
    localresponse_cuda.powers(sums, 0.7, 0.5, 0.75, p)
    d = 0.7 + 0.5 * values(sums)
    np.testing.assert_allclose(p, d**-0.75, rtol=fine)
    localresponse_cuda.ratio(dy, x, sums, p, 0.7, 0.5, ratio)
    np.testing.assert_allclose(ratio, values(dy) * values(x) * d**-1.75, rtol=fine, atol=fine)
    y, dx = (arrange(poisoned(67, dtype)) for _ in range(2))
    localresponse_cuda.multiply(x, p, y)
    assert error(values(y), values(x) * d**-0.75) < 2 * ROUNDING[dtype]
    localresponse_cuda.combine(dy, p, x, windows, 0.3, dx)
    want = values(dy) * d**-0.75 - 0.3 * values(x) * values(windows)
    assert error(values(dx), want) < 2 * ROUNDING[dtype]
