"""Matrix products in tiles: against float64, in every layout; the same bits for all threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import nbbn
from nbbn.kernels import _jit, matmul_cpu
from tests.helpers import views

SHAPES = [
    (1, 1, 1), (64, 784, 100), (10, 128, 512), (300, 20, 333), (1, 700, 5), (700, 1, 900),
    (3, 0, 4), (0, 3, 4), (3, 4, 0), (2000, 30, 40),
]  # fmt: skip


LAYOUTS = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "columns of a wider one": views.padded,
    "rows of a wider one by columns": lambda x: views.padded(x.T).T,
    "every second row and column": views.sliced,
    "reversed": views.flipped,
    "misaligned": views.misaligned,
    "read-only": views.read_only,
    "big-endian": views.big_endian,
    "other precision": lambda x: x.astype(np.float64),
}


def agrees(a, b, out):
    """Whether out is a @ b up to the rounding of K additions."""
    wide = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    eps = np.finfo(out.dtype).eps
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return np.all(np.abs(out - exact) <= (a.shape[-1] + 2) * eps * wide)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_shape_and_layout_gives_the_product(rng, layout, dtype):
    for M, K, N in SHAPES:
        a, b = rng.normal(size=(M, K)).astype(dtype), rng.normal(size=(K, N)).astype(dtype)
        for left, right in ((LAYOUTS[layout](a), b), (a, LAYOUTS[layout](b))):
            out = np.full((M, N), np.nan, dtype)
            matmul_cpu.matmul(left, right, out)
            assert agrees(a, b, out), (M, K, N)


@pytest.mark.parametrize("whole", [20_000, 10**6, 2**62])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pieces_of_any_size_give_the_product(rng, dtype, whole, monkeypatch):
    """Of whatever size the processor's BLAS takes them, and with b turned first for many rows."""
    (address, item, _), one = matmul_cpu.blas()[np.dtype(dtype)]
    found = {np.dtype(dtype): ((address, item, whole), one)}
    monkeypatch.setattr(matmul_cpu, "blas", lambda: found)
    for M, K, N in (*SHAPES, (1100, 150, 70)):
        a, b = rng.normal(size=(M, K)).astype(dtype), rng.normal(size=(K, N)).astype(dtype)
        for left in (a, np.asfortranarray(a)):
            for right in (b, np.asfortranarray(b)):
                out = np.full((M, N), np.nan, dtype)
                matmul_cpu.matmul(left, right, out)
                assert agrees(a, b, out), (M, K, N)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5, 3, 4), (5, 4, 2)),
        ((5, 3, 4), (4, 2)),
        ((3, 4), (5, 4, 2)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((2, 5, 3, 4), (2, 1, 4, 2)),
        ((0, 3, 4), (4, 2)),
        ((4, 300, 200), (200, 100)),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_matrices_in_stacks(rng, a, b, turned):
    a, b = (rng.normal(size=shape).astype(np.float32) for shape in (a, b))
    out = np.full(np.matmul(a, b).shape, np.nan, np.float32)
    if turned:
        a, b = (np.ascontiguousarray(x.swapaxes(-1, -2)).swapaxes(-1, -2) for x in (a, b))
    matmul_cpu.matmul(a, b, out)
    assert agrees(a, b, out)


def test_a_result_with_gaps_and_small_floats_are_numpys(rng):
    a, b = rng.normal(size=(2, 4, 4)).astype(np.float32)
    wide = np.zeros((4, 8), np.float32)
    matmul_cpu.matmul(a, b, wide[:, ::2])
    assert agrees(a, b, wide[:, ::2])
    assert not wide[:, 1::2].any()
    half = np.zeros((4, 4), np.float16)
    matmul_cpu.matmul(a.astype(np.float16), b.astype(np.float16), half)
    np.testing.assert_array_equal(half, a.astype(np.float16) @ b.astype(np.float16))


@pytest.mark.parametrize(
    "shape", [(64, 100, 784), (1, 1, 10**7), (4096, 4096, 4096), (5, 10**6, 9)]
)
def test_tiles_are_few_and_none_is_thin(shape):
    rows, cols = matmul_cpu.grid(*shape)
    assert 1 <= rows * cols <= 64
    assert rows * cols <= 2 or min(shape[0] // rows, shape[1] // cols) >= 128 or 1 in (rows, cols)


TRAIN = """
import hashlib, numba, numpy as np, nbbn
from nbbn.kernels import _jit
_jit.PARALLEL_MIN = 0
def weights(threads):
    nbbn.threads.limit(threads)
    rng = np.random.default_rng(0)
    model = nbbn.mlp((300, 512, 64, 10), rng=0)
    optimizer = nbbn.optim.Adam(model.parameters(), lr=1e-2)
    step = nbbn.train.record_step(model, nbbn.losses.cross_entropy, optimizer)
    for _ in range(5):
        step(rng.normal(size=(128, 300)).astype(np.float32), rng.integers(0, 10, 128))
    state = model.state_dict()
    return hashlib.sha256(b"".join(v.tobytes() for v in state.values())).hexdigest()
found = [weights(n) for n in (1, 2, 3, 4, 8)]
_jit.workers = nbbn.kernels.matmul_cpu.workers = lambda work: 1
found.append(weights(8))
print(len(set(found)), numba.threading_layer())
"""


@pytest.mark.parametrize("layer", ["default", "omp"])
def test_training_has_the_same_bits_for_every_number_of_threads(layer):
    env = {**os.environ, "NUMBA_NUM_THREADS": "8", "NUMBA_THREADING_LAYER": layer}
    done = subprocess.run(
        [sys.executable, "-c", TRAIN], env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    different, used = done.stdout.split()
    assert different == "1"
    # Where the wheel puts it, which is not where the system looks.
    if layer == "default" and (Path(sys.prefix) / "lib" / "libtbb.so.12").exists():
        assert used == "tbb"


def threads_of(libraries):
    return [library.get_num_threads() for library in libraries]


@pytest.fixture
def blas():
    """SciPy's BLAS, on more than one thread."""
    libraries = matmul_cpu.libraries()
    before = threads_of(libraries)
    for _, put in matmul_cpu._thread_counts():
        put(2)
    yield libraries
    for (_, put), threads in zip(matmul_cpu._thread_counts(), before, strict=True):
        put(threads)


def test_scipys_blas_rests_while_tiles_run_and_numpys_does_not(rng, blas, monkeypatch):
    from threadpoolctl import ThreadpoolController

    own = {library.filepath for library in blas}
    others = [
        library
        for library in ThreadpoolController().lib_controllers
        if library.user_api == "blas" and library.filepath not in own
    ]
    seen = []
    tiles = matmul_cpu._tiles
    watch = lambda *args: (seen.append((threads_of(blas), threads_of(others))), tiles(*args))  # noqa: E731
    monkeypatch.setattr(matmul_cpu, "_tiles", watch)
    a = rng.normal(size=(200, 200)).astype(np.float32)
    before = threads_of(others)
    matmul_cpu.matmul(a, a, np.empty_like(a))
    assert seen == [([1] * len(blas), before)]
    assert threads_of(blas) == [2] * len(blas)
    monkeypatch.setattr(matmul_cpu, "_tiles", None)
    with pytest.raises(TypeError):
        matmul_cpu.matmul(a, a, np.empty_like(a))
    assert threads_of(blas) == [2] * len(blas)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_products_of_several_threads_share_the_rest(blas):
    inside = threading.Event()
    leave = threading.Event()

    def hold():
        with matmul_cpu.one_thread:
            inside.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert inside.wait(300)
        with matmul_cpu.one_thread:
            pass
        assert threads_of(blas) == [1] * len(blas)
        if hasattr(os, "fork"):
            assert in_child(lambda: threads_of(blas)) == str([2] * len(blas))
    finally:
        leave.set()
        thread.join()
    assert threads_of(blas) == [2] * len(blas)


def test_a_product_that_a_signal_cut_short_is_made_good_by_the_next(blas):
    # What is left where a handler raises at the very end of a product: it never comes out.
    matmul_cpu.one_thread.__enter__()
    assert threads_of(blas) == [1] * len(blas)
    a, b, out = np.ones((64, 64)), np.ones((64, 64)), np.empty((64, 64))
    matmul_cpu.matmul(a, b, out)
    assert threads_of(blas) == [2] * len(blas)
    assert (out == 64).all()


def test_a_signal_while_threads_are_set_changes_nothing(blas, monkeypatch):
    counts = matmul_cpu._thread_counts()

    def interrupted(put):
        def set_and_raise(threads):
            put(threads)
            if threads == 1:
                raise KeyboardInterrupt

        return set_and_raise

    broken = [(get, interrupted(put)) for get, put in counts]
    monkeypatch.setattr(matmul_cpu, "_thread_counts", lambda: broken)
    with pytest.raises(KeyboardInterrupt), matmul_cpu.one_thread:
        pass
    assert threads_of(blas) == [2] * len(blas)


def in_child(function):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(function()).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def test_a_product_leaves_the_threads_to_the_next_kernel(monkeypatch):
    monkeypatch.setattr(_jit.numba, "get_num_threads", lambda: 4)
    monkeypatch.setattr(_jit.numba, "threading_layer", lambda: "tbb")
    x = nbbn.Tensor(np.ones((2, 2), np.float32))
    x @ x
    assert _jit.workers(_jit.PARALLEL_MIN) == 4
