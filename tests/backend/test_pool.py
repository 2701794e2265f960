"""The memory of large results comes from earlier large results, and from nobody's living array."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from nbbn import functional as F  # noqa: N812
from nbbn import pool
from nbbn.errors import ArgumentError, DTypeError

SHAPE = (1 << 10, 1 << 13)
FLOAT32 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def _own_pool():
    pool.keep(2)
    yield
    pool.keep(2)


def address(array):
    return array.__array_interface__["data"][0]


def test_the_next_large_result_takes_over_the_memory_of_the_last():
    first = pool.empty(SHAPE, FLOAT32)
    assert first.shape == SHAPE
    assert first.dtype == FLOAT32
    assert first.flags.carray
    where = address(first)
    del first
    again = pool.empty((SHAPE[1], SHAPE[0] // 2), np.dtype(np.float64))
    assert address(again) == where
    assert again.shape == (SHAPE[1], SHAPE[0] // 2)


def test_memory_in_use_is_not_handed_out():
    first = pool.empty(SHAPE, FLOAT32)
    first.fill(1)
    views = [first[5:], first.T, first.reshape(-1)[7::3].view(np.int32)]
    del first
    for _ in range(len(views)):
        other = pool.empty(SHAPE, FLOAT32)
        other.fill(2)
        assert not any(np.may_share_memory(other, view) for view in views)
        assert all(np.all(view.view(FLOAT32) == 1) for view in views)
        views.pop()


@pytest.mark.parametrize("shape", [(8, 16), (pool.LARGEST // 4 + 1,), 0, 12])
def test_other_sizes_are_ordinary_arrays(shape):
    array = pool.empty(shape, FLOAT32)
    assert array.flags.owndata
    assert array.shape == ((shape,) if isinstance(shape, int) else shape)


def test_only_a_few_blocks_wait_and_none_after_keep_0():
    arrays = [pool.empty(SHAPE, FLOAT32) for _ in range(4)]
    del arrays
    assert len(pool._free) == 2
    pool.keep(0)
    first = pool.empty(SHAPE, FLOAT32)
    del first
    assert len(pool._free) == 0


def test_much_larger_memory_is_left_for_others():
    large = pool.empty((pool.LARGEST // 4,), FLOAT32)
    where = address(large)
    del large
    small = pool.empty(SHAPE, FLOAT32)
    assert address(small) != where
    assert address(pool.empty((pool.LARGEST // 4,), FLOAT32)) == where


@pytest.mark.parametrize("blocks", [-1, 1.5, True, None])
def test_keep_takes_a_count(blocks):
    with pytest.raises(ArgumentError if blocks == -1 else DTypeError, match="blocks must be"):
        pool.keep(blocks)


def test_results_of_many_threads_never_share_memory():
    errors = []

    def work(value):
        for _ in range(30):
            array = pool.empty(SHAPE, FLOAT32)
            array[:: SHAPE[0] // 8] = value
            gc.collect(0)
            if not np.all(array[:: SHAPE[0] // 8] == value):
                errors.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_batch_norm_reuses_its_large_results(rng):
    x = rng.standard_normal(SHAPE, dtype=np.float32)
    y, _ = F.batch_norm_train(x)
    where, copy = address(y), y.copy()
    del y
    again, _ = F.batch_norm_train(x)
    assert address(again) == where
    assert np.array_equal(again, copy)
