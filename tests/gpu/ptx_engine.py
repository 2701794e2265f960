"""Runs the launchers of nbbn.kernels as on a device: their compiled PTX, interpreted on the CPU.

`install(patch)` puts a driver in place that loads PTX instead of machine code and that reads
launched arguments out of memory as the real one does. Everything before that is nbbn's own: the
choice of a kernel, its compilation, grid and block, packed arguments. Arrays are NumPy's.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from numba.cuda import dispatcher

from nbbn.kernels import _cuda
from tests.gpu import order
from tests.gpu.ptx import Program

ARCHITECTURE = (9, 0)
# Compiled once for all tests.
compile_kernel = functools.cache(_cuda.compile_kernel)
packed = _cuda.packed


class Status(int):
    """What the driver returns first."""

    name = "CUDA_SUCCESS"


class Driver:
    """The few functions of CUDA's driver that nbbn calls."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
    )

    def __init__(self) -> None:
        # What the next launch may touch, and which of its blocks run: None for all.
        self.operands: list[np.ndarray] = []
        self.blocks: Any = None
        self.programs: list[Program] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: (Status(0), 1)

    def cuDeviceGetAttribute(self, attribute: int, device: Any) -> Any:  # noqa: N802
        return Status(0), ARCHITECTURE[attribute]

    def cuModuleLoadData(self, code: bytes) -> Any:  # noqa: N802
        self.programs.append(Program(code))
        return Status(0), self.programs[-1]

    def cuModuleGetFunction(self, module: Program, name: bytes) -> Any:  # noqa: N802
        return Status(0), (module, name.decode())

    def cuLaunchKernel(self, function: Any, *arguments: Any) -> Any:  # noqa: N802
        x, y, z, bx, by, bz, shared, _, pointers, _ = arguments
        program, name = function
        sizes = [variable.size for variable in program.module.entry(name).parameters]
        addresses = (ctypes.c_void_p * len(sizes)).from_address(pointers)
        values = [ctypes.string_at(p, size) for p, size in zip(addresses, sizes, strict=True)]
        program.memory.clear()
        for k, array in enumerate(self.operands):
            program.memory.add(array, f"array {k} ({array.dtype}, {array.size} elements)")
        program.launch(name, (x, y, z), (bx, by, bz), values, shared, order.current(), self.blocks)
        return (Status(0),)


driver = Driver()
_scratch: dict[Any, Any] = {}


def _arrays(values: Any) -> Iterator[np.ndarray]:
    for value in values:
        if isinstance(value, tuple):
            yield from _arrays(value)
        elif isinstance(value, np.ndarray) and value.size:
            yield value


def _packed(args: Any) -> Any:
    """As that of `_cuda`; tells the driver, which sees addresses only, how large the arrays are."""
    driver.operands = list(_arrays(args))
    return packed(args)


def install(patch: Any) -> None:
    """Launch through the interpreter from now on; `patch` is pytest's monkeypatch."""
    stand_in = SimpleNamespace(compute_capability=ARCHITECTURE)
    patch.setattr(dispatcher, "get_current_device", lambda: stand_in)
    patch.setattr(_cuda, "compile_kernel", compile_kernel)
    patch.setattr(_cuda, "link", lambda ptx, cc, *options: (ptx, ""))
    patch.setattr(_cuda, "cached", lambda name, key, build: build())
    patch.setattr(_cuda, "_driver", lambda: driver)
    patch.setattr(_cuda, "_device", _cuda._Device())
    patch.setattr(_cuda, "packed", _packed)
    patch.setattr(_cuda, "_scratch", _scratch)
    patch.setattr(_cuda, "_zeros", np.zeros)


@contextmanager
def only(blocks: Any) -> Iterator[None]:
    """Run these blocks (x, y, z) of each launch only."""
    driver.blocks = blocks
    try:
        yield
    finally:
        driver.blocks = None
