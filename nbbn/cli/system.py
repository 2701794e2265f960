"""`nbbn info`, `nbbn warmup` and `nbbn data`."""

from __future__ import annotations

import argparse
import os
import time

from .. import __version__
from ..errors import DataError


def info(arguments: argparse.Namespace) -> None:
    """Print what will be used."""
    import platform

    import llvmlite
    import llvmlite.binding as llvm
    import numba
    import numpy as np
    import scipy

    from .. import backend
    from .._validation import cache_dir as user_cache
    from ..kernels import matmul_cpu
    from ..kernels._cache import cache_dir

    rows = [
        ("nbbn", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("numpy", f"{np.__version__}, scipy {scipy.__version__}"),
        ("numba", f"{numba.__version__} (llvmlite {llvmlite.__version__})"),
    ]
    if numba.config.DISABLE_JIT:
        rows.append(
            ("", "NUMBA_DISABLE_JIT is set: kernels run in plain Python, hundreds of times slower")
        )
    for blas in matmul_cpu.libraries():
        rows.append(
            ("BLAS", f"{blas.internal_api} {blas.version}, {getattr(blas, 'architecture', '?')} "
             "kernels, one thread a tile")
        )  # fmt: skip
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        if name in os.environ:
            rows.append(("", f"{name}={os.environ[name]} is set: matrix products may be slow"))
    threads, cores = numba.get_num_threads(), os.cpu_count() or 1
    layer = numba.threading_layer()
    serial = " (not safe between threads: kernels run serially)" if layer == "workqueue" else ""
    rows.append(("threads", f"{threads} of {cores}, layer {layer}{serial}"))
    if hasattr(os, "getloadavg"):
        load = os.getloadavg()[0]
        # Threads that wait for one that has lost its core cost more than they bring. A load below 1
        # may be the echo of your own last run.
        busy = ": busy, --threads 1 may train faster" if int(load) + threads > cores > 1 else ""
        rows.append(("load", f"{load:.1f} on {cores} cores{busy}"))
    rows += [
        ("processor", llvm.get_host_cpu_name()),
        ("kernel cache", str(cache_dir() or "none: every process compiles")),
        ("data cache", str((base := user_cache()) and base / "mnist")),
        *zip(("devices", *[""] * 9), backend.describe_devices(), strict=False),
    ]
    for label, value in rows:
        print(f"{label:13} {value}")


def warmup(arguments: argparse.Namespace) -> None:
    """Compile everything ahead of time."""
    from ..functional.warmup import warmup
    from ..kernels._cache import cache_dir

    start = time.perf_counter()
    count = warmup(on_compile=None if arguments.quiet else lambda name: print(f"compiling {name}"))
    if not arguments.quiet:
        seconds = time.perf_counter() - start
        print(f"{count} kernels compiled in {seconds:.1f} s, cached in {cache_dir()}")


def data(arguments: argparse.Namespace) -> None:
    """Fetch and verify a data set."""
    from ..data import load

    found = load(arguments.name, data_dir=arguments.dir)
    assert found.test_labels is not None
    if arguments.dir is not None and len(list(arguments.dir.glob("*-ubyte*"))) < 4:
        raise DataError(f"{arguments.dir} could not be filled: name a folder that can be written")
    counts = f"{len(found.train_labels):,} training and {len(found.test_labels):,} test images"
    print(f"{arguments.name} verified: {counts}")
