"""Device arrays without a device, for Numba's CUDA simulator: the part of CuPy that nbbn uses.

A simulated array holds its elements in host memory but behaves like a device array: it is no
`numpy.ndarray`, mixes with none, and is copied to and from the host only on request. Fresh memory
is filled with NaN bits, so that reading what nobody wrote shows.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from nbbn.backend import arrays

_POISON = 0xFF

__version__ = "simulated"
add = np.add


class Runtime:
    """What nbbn asks CUDA's runtime about."""

    @staticmethod
    def getDevice() -> int:  # noqa: N802 - CUDA's name
        return 0

    @staticmethod
    def getDeviceCount() -> int:  # noqa: N802
        return 1

    @staticmethod
    def getDeviceProperties(number: int) -> dict[str, Any]:  # noqa: N802
        return {"name": b"Numba's simulator", "major": 0, "minor": 0, "totalGlobalMem": 0}

    @staticmethod
    def driverGetVersion() -> int:  # noqa: N802
        return 0

    runtimeGetVersion = driverGetVersion  # noqa: N815


cuda = types.SimpleNamespace(runtime=Runtime)


class Pointer:
    """A place in the simulated memory of an array."""

    device_id = 0

    def __init__(self, host: np.ndarray, offset: int = 0) -> None:
        self.host, self.offset = host, offset
        self.ptr = host.__array_interface__["data"][0] + offset

    def __add__(self, offset: int) -> Pointer:
        return Pointer(self.host, self.offset + offset)


class ndarray(NDArrayOperatorsMixin):  # noqa: N801 - CuPy's name
    """An array at a place in simulated device memory."""

    __module__ = "cupy"  # nbbn tells device arrays by their package

    def __init__(self, shape: Any, dtype: Any, memory: Pointer, strides: Any = None) -> None:
        self.host = np.ndarray(shape, dtype, memory.host, memory.offset, strides)
        self.base = None

    shape: Any = property(lambda self: self.host.shape)
    dtype: Any = property(lambda self: self.host.dtype)
    ndim: Any = property(lambda self: self.host.ndim)
    size: Any = property(lambda self: self.host.size)
    nbytes: Any = property(lambda self: self.host.nbytes)
    strides: Any = property(lambda self: self.host.strides)
    flags: Any = property(lambda self: self.host.flags)
    data: Any = property(lambda self: Pointer(self.host))
    T: Any = property(lambda self: self._view(self.host.T))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.host.__array_interface__, "stream": None}

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("a device array is not converted implicitly: copy it to the host")

    def __len__(self) -> int:
        return len(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __repr__(self) -> str:
        return repr(self.host)

    def __getitem__(self, index: Any) -> ndarray:
        return self._view(np.asarray(self.host[_unwrap(index)]))

    def __setitem__(self, index: Any, value: Any) -> None:
        self.host[_unwrap(index)] = _unwrap(_own(value))

    def _view(self, host: np.ndarray) -> ndarray:
        root = self if self.base is None else self.base
        return wrap(host, root if np.may_share_memory(host, root.host) else None)

    def reshape(self, *shape: Any) -> ndarray:
        return self._view(self.host.reshape(*shape))

    def transpose(self, *axes: Any) -> ndarray:
        return self._view(self.host.transpose(*axes))

    def swapaxes(self, first: int, second: int) -> ndarray:
        return self._view(self.host.swapaxes(first, second))

    def ravel(self, order: str = "C") -> ndarray:
        return self._view(self.host.ravel(order))

    def view(self, dtype: Any) -> ndarray:
        return self._view(self.host.view(dtype))

    def astype(self, dtype: Any) -> ndarray:
        return wrap(self.host.astype(dtype))

    def copy(self, order: str = "C") -> ndarray:
        return wrap(self.host.copy(order))

    def fill(self, value: Any) -> None:
        self.host.fill(value)

    def argmax(self, axis: int | None = None) -> ndarray:
        return wrap(np.asarray(self.host.argmax(axis)))

    def get(self) -> np.ndarray:
        return self.host.copy()

    def set(self, values: np.ndarray) -> None:
        np.copyto(self.host, values, casting="no")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        _own(inputs)
        _own(options)
        result = getattr(ufunc, method)(*_unwrap(inputs), **_unwrap(options))
        return options["out"][0] if "out" in options else _wrapped(result)

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        _own(args)
        _own(options)
        result = function(*_unwrap(args), **_unwrap(options))
        written = options.get("out")
        for value in args:
            if isinstance(value, ndarray) and result is value.host:
                written = value
        if function is np.broadcast_to:
            return args[0]._view(result)
        return written if written is not None else _wrapped(result)


def wrap(host: np.ndarray, base: ndarray | None = None) -> ndarray:
    """The array whose elements are in `host`, perhaps a view of another one."""
    array = ndarray.__new__(ndarray)
    array.host, array.base = host, base
    return array


def _own(value: Any) -> Any:
    """Refuse an array of the host, as a device would."""
    if isinstance(value, np.ndarray):
        raise TypeError("unsupported type numpy.ndarray: an array of the host meets a device array")
    if isinstance(value, tuple | list):
        for item in value:
            _own(item)
    elif isinstance(value, dict):
        _own(tuple(value.values()))
    return value


def _unwrap(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.host
    if isinstance(value, tuple | list):
        return type(value)(_unwrap(item) for item in value)
    if isinstance(value, dict):
        return {name: _unwrap(item) for name, item in value.items()}
    return value


def _wrapped(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return wrap(np.asarray(value))
    return value


class launchers:  # noqa: N801 - a function to its caller
    """Launchers of a kernel module that hand the simulator the NumPy arrays it wants."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Callable[..., None]:
        launcher = getattr(self._module, name)

        @functools.wraps(launcher)
        def launch(*args: Any) -> None:
            launcher(*_unwrap(args))

        # Found directly from now on: a recorder compares launchers by identity.
        setattr(self, name, launch)
        return launch


def empty(shape: int | tuple[int, ...], dtype: Any) -> ndarray:
    """Allocate, filled with bits that are NaN in every floating type."""
    host = np.empty(shape, dtype)
    host.reshape(-1).view(np.uint8)[...] = _POISON
    return wrap(host)


def asarray(value: Any) -> ndarray:
    """Copy an array of the host, or view an object with `__cuda_array_interface__`."""
    if isinstance(value, ndarray):
        return value
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is not None:
        owner = type("Memory", (), {"__array_interface__": interface, "owner": value})()
        return wrap(np.asarray(owner))
    value = np.asarray(value)
    return wrap(np.array(value, order="F" if value.flags.fnc else "C"))


def from_dlpack(value: Any) -> ndarray:
    """View an object that speaks DLPack."""
    return wrap(np.from_dlpack(value))


def asnumpy(value: ndarray) -> np.ndarray:
    """Copy to the host."""
    return value.get()


def install() -> None:
    """Use these arrays where nbbn would use CuPy's."""
    arrays.simulated = sys.modules[__name__]
