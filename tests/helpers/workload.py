"""What `test_processes.py` runs in processes of their own: every parallel kernel, every situation.

A situation prints one line per result and is judged by its lines and its exit status. nbbn is
imported inside the functions, because when that happens is part of some situations.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time

import numpy as np

THREADS = 8
PATIENCE = 120


def digest() -> str:
    """Run every parallel kernel in its parallel form, where the guard allows it."""
    import nbbn.functional as F  # noqa: N812
    from nbbn.data import Batches
    from nbbn.functional.pooling import max_pool2d_at
    from nbbn.kernels import (  # fmt: skip
        _jit,
        dropout_cpu,
        elementwise_cpu,
        gather_cpu,
        matmul_cpu,
        optim_cpu,
    )
    from tests.helpers.functions import FUNCTIONS, batch_norm, weighted

    _jit.PARALLEL_MIN = 0
    rng = np.random.default_rng(5)
    results = []
    # Of each kind the last; rows, planes that fit the cache, and those of one channel, in parts.
    kinds = {f.name.split(" (")[0]: f for f in FUNCTIONS}
    more = [batch_norm(shape, 1) for shape in ((300, 24), (3, 24, 40), (2, 1, 900))]
    for f in (*kinds.values(), *more, weighted((300, 24))):
        results += f.everything(*f.operands(rng))
    images = rng.normal(size=(6, 9, 8, 7)).astype(np.float32)
    for axis in (1, -1):
        _, index = F.max_pool2d(images, 3, stride=2, axis=axis)
        results.append(max_pool2d_at(images, index, 3, stride=2, axis=axis))
    x = rng.normal(size=(300, 24)).astype(np.float32)
    labels = rng.integers(0, 24, 300)
    wide = np.resize(x, (300, 300))
    # With so many rows the other matrix is turned first.
    for rows in (300, 1024):
        product = np.empty((rows, 300), np.float32)
        matmul_cpu.matmul(np.resize(x, (rows, 300)), wide.T, product)
        results.append(product)
    elementwise_cpu.add_bias(x, x[0].copy(), x)
    hyper = np.linspace(0.1, 0.9, 9, dtype=np.float32)
    flat, state, other = np.abs(rng.normal(size=(3, 5000))).astype(np.float32)
    optim_cpu.sgd(x.ravel()[:5000], hyper, flat, state)
    optim_cpu.adam(x.ravel()[:5000], hyper, flat, state, other)
    mask = np.empty(5000, np.float32)
    dropout_cpu.dropout_mask(np.full(1, 7, np.uint64), 0.3, mask)
    kept = np.empty(5000, np.float32)
    elementwise_cpu.masked(flat, mask, kept)
    results += [x, flat, state, other, mask, kept]
    images = rng.integers(0, 255, (50, 64), dtype=np.uint8)
    bytes_ = labels[:50].astype(np.uint8)
    results += [x for x, _ in Batches(images, bytes_, 25, rng=1)]
    scale = np.linspace(0.1, 1, 64)
    out, order = np.empty((50, 64), np.float32), np.arange(50)[::-1].copy()
    gather_cpu.gather_scale_features(images, order, scale, scale, out)
    results.append(out)
    return hashlib.sha256(b"".join(array.tobytes() for array in results)).hexdigest()[:16]


def say(name: str, value: object) -> None:
    sys.stdout.write(f"{name} {value}\n")
    sys.stdout.flush()


# -------------------------------------------------------------------------------- situations


def serial() -> None:
    """Under NUMBA_NUM_THREADS=1 this is the truth for all others."""
    say("digest", digest())


def parallel() -> None:
    """One thread alone: all kernels run in their parallel form."""
    say("digest", digest())
    from nbbn.kernels import _jit

    say("workers", _jit.workers(10**6))
    kernels = [k for k in gc.get_objects() if issubclass(type(k), _jit.Kernel)]
    for kernel in kernels:
        if _jit.workers(10**6) > 1 and not kernel.parallel.signatures:
            say("never ran in parallel:", kernel.__name__)
    say("kernels", len(kernels) > 10)


def threads() -> None:
    """Many threads in the first call at once, and again when all is compiled; then exit."""

    def work() -> None:
        for _ in range(3):
            barrier.wait(PATIENCE)
            results.append(digest())

    results: list[str] = []
    barrier = threading.Barrier(THREADS)
    pool = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    say("calls", len(results))
    for result in sorted(set(results)):
        say("digest", result)


def nested() -> None:
    """Calls from inside the user's own parallel loop, through a callback."""
    import numba

    def work() -> None:
        results.append(digest())

    results: list[str] = []
    callback = ctypes.CFUNCTYPE(None)(work)

    @numba.njit(parallel=True, nogil=True)
    def loop(count):
        for _ in numba.prange(count):
            callback()

    digest()
    loop(6)
    say("calls", len(results))
    for result in sorted(set(results)):
        say("digest", result)


def forks() -> None:
    """Children of a process whose pool runs: child, grandchild, from a thread, by a Pool."""
    say("digest", digest())
    in_child("child", digest)
    in_child("grandchild", grandchild)
    busy = [threading.Thread(target=lambda: [digest() for _ in range(20)]) for _ in range(2)]
    forker = threading.Thread(target=in_child, args=("thread", digest))
    for thread in (*busy, forker):
        thread.start()
    for thread in (*busy, forker):
        thread.join()
    pool_of("fork")
    say("digest", digest())


def other_starts() -> None:
    """Fresh children of a process whose pool runs."""
    say("digest", digest())
    pool_of("spawn")
    pool_of("forkserver")


def late_import() -> None:
    """A child that loads nbbn first, after the parent's own numba code has started the pool."""
    start_pool()
    assert not any(name.startswith("nbbn") for name in sys.modules)
    in_child("child", digest)
    in_child("grandchild", grandchild)
    pool_of("fork")
    say("digest", digest())


def fork_while_compiling() -> None:
    """A child made while another thread holds the compiler."""
    from numba.core.compiler_lock import global_compiler_lock

    import nbbn.functional as F  # noqa: N812

    def hold() -> None:
        with global_compiler_lock:
            started.set()
            time.sleep(0.5)

    F.relu(np.ones(3))
    started = threading.Event()
    thread = threading.Thread(target=hold)
    thread.start()
    started.wait(PATIENCE)
    in_child("child", digest)
    thread.join()


def heartbeat() -> None:
    """Count how often another Python thread gets its turn during one long kernel."""
    import nbbn.functional as F  # noqa: N812
    from nbbn.kernels import _jit

    def beat() -> None:
        while not done.is_set():
            beats.append(None)
            time.sleep(0.001)

    # A NaN per column sends the kernel down its slowest path.
    x = np.full((300_000, 64), np.nan, np.float32)
    beats: list[None] = []
    done = threading.Event()
    thread = threading.Thread(target=beat)
    thread.start()
    for form, threshold in (("serial", x.size + 1), ("parallel", 0)):
        _jit.PARALLEL_MIN = threshold
        F.batch_norm_train(x, out=x)  # compiled here, if at all
        before = len(beats)
        F.batch_norm_train(x, out=x)
        say(form, len(beats) - before)
    done.set()
    thread.join()


def data_loader() -> None:
    """Workers of a PyTorch DataLoader that normalize what they load."""
    import torch

    class Digests(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> str:
            return digest()

    say("digest", digest())
    for batch in torch.utils.data.DataLoader(Digests(), num_workers=2):
        say("digest", batch[0])


# ------------------------------------------------------------------------------------ helpers


def start_pool() -> None:
    import numba

    @numba.njit(parallel=True)
    def fill(x):
        for i in numba.prange(x.size):
            x[i] = i

    fill(np.zeros(1000))


def in_child(name, function) -> None:
    """Say what `function` returned in a forked child, or how the child ended."""
    say(name, forked(function))


def forked(function) -> str:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        # A child that hangs is killed by its own alarm.
        signal.alarm(PATIENCE)
        result = function()
        os.write(writer, str(result).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        result = file.read()
    status = os.waitpid(pid, 0)[1]
    return result if status == 0 else f"ended with status {status}"


def grandchild() -> str:
    """Return what a child of this child found."""
    return forked(digest)


def pool_of(method: str) -> None:
    with multiprocessing.get_context(method).Pool(2) as pool:
        for result in [pool.apply_async(digest) for _ in range(3)]:
            say(method, result.get(PATIENCE))
