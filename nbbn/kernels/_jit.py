"""How nbbn compiles for the CPU: flags, the serial/parallel twin, the threading guard, the cache.

Every kernel is written once, with `prange` over blocks whose size follows from the array's shape
alone, and compiled twice: serial and parallel. `Kernel` picks one per call. Both give the same
bits, so the choice is free: small arrays, a busy or forked process, and a threading layer that
cannot be shared between threads all take the serial one.

No fastmath flag is used. A flag that lets the compiler reorder sums or fuse a product with a sum
makes the bits depend on where a loop was inlined, on the processor and on the compiler's version.
Loops are written so that they vectorize as they stand.

Under NUMBA_DISABLE_JIT=1 both forms are the function itself, for a debugger to step through.
"""

from __future__ import annotations

import ctypes
import os
import site
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel as _numba_parallel

from ._cache import KernelCache

# Below this many elements a parallel region costs more than it saves.
PARALLEL_MIN = 65_536


class _State(threading.local):
    def __init__(self) -> None:
        self.busy = False
        # What happens to a kernel and its operands in place of a call, or None.
        self.instead: Callable[..., None] | None = None
        self.scratch: dict[Any, tuple[np.ndarray, np.ndarray]] = {}


_state = _State()


def _forked() -> bool:
    """Whether this process was forked and has not executed a program since."""
    try:
        with open("/proc/self/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:  # not Linux: a fork before this module loads goes unnoticed
        return False
    return bool(int(fields[6]) & _PF_FORKNOEXEC)


# A process forked after the thread pool started has the pool's bookkeeping but not its threads.
# This module may be loaded only then: a pool older than it may be the parent's.
_PF_FORKNOEXEC = 0x40
_forked_with_pool = bool(_numba_parallel._is_initialized) and _forked()


def _after_fork_in_child() -> None:
    global _forked_with_pool, _state
    global_compiler_lock.release()
    _state = _State()
    _forked_with_pool = _forked_with_pool or bool(_numba_parallel._is_initialized)


if hasattr(os, "register_at_fork"):
    # A fork waits for a compilation in another thread: the child would wait for it for ever.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_after_fork_in_child,
    )


# Where the wheel of TBB puts its library, below the environment's or the user's folder.
_TBB = {"linux": "lib/libtbb.so.12", "win32": "Library/bin/tbb12.dll"}


def _find_tbb() -> None:
    """Load the wheel's TBB, so that Numba finds it: threads that wait sleep soon, not spin."""
    for base in (sys.prefix, site.getuserbase()):
        if (path := Path(base, _TBB.get(sys.platform, "-"))).exists():
            try:
                ctypes.CDLL(str(path))
            except OSError:  # of another processor, say: Numba's next layer does
                continue
            return


_find_tbb()


def workers(work: int) -> int:
    """How many threads a kernel over `work` elements gets now: 1 means the serial form."""
    if work < PARALLEL_MIN or _state.busy or _forked_with_pool:
        return 1
    threads = numba.get_num_threads()
    if threads > 1 and numba.threading_layer() == "workqueue":
        return 1
    return threads


def scratch(wide: int, narrow: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Flat float64 and `dtype` arrays, of these sizes at least, until this thread's next kernel."""
    found = _state.scratch.get(dtype)
    if found is None or found[0].size < wide or found[1].size < narrow:
        least = (4096, 4096) if found is None else (found[0].size, found[1].size)
        found = np.empty(max(wide, least[0]), np.float64), np.empty(max(narrow, least[1]), dtype)
        _state.scratch[dtype] = found
    return found


def device_function(function: Callable[..., Any]) -> Any:
    """Compile a helper that kernels call; its code becomes part of theirs."""
    return njit(error_model="numpy", nogil=True)(function)


def inlined_device_function(function: Callable[..., Any]) -> Any:
    """As `device_function`, for what must become part of its caller, from the cache too."""
    return njit(error_model="numpy", nogil=True, forceinline=True)(function)


def loop(function: Callable[..., Any]) -> Any:
    """Make a loop part of its callers before they are compiled.

    The compiler makes vectors of a loop over one array, or over two that lie apart, not over two
    that may be either. So who may work in place has two such loops and asks `same` which to take.
    """
    return njit(error_model="numpy", nogil=True, inline="always")(function)


@device_function
def same(target, source):
    """Whether two contiguous arrays of one shape are the same memory."""
    return target.ctypes.data == source.ctypes.data


@device_function
def bounds(part, parts, total):
    """First and last + 1 of `part` when `total` items are split evenly into `parts`."""
    return part * total // parts, (part + 1) * total // parts


def library_function(function: Callable[..., Any]) -> Any:
    """Compile a serial function for the users' own jitted code, and for calls from Python."""
    return _compile(function, parallel=False)


def inlined_function(function: Callable[..., Any]) -> Any:
    """As `library_function`, for one so short that calling it would cost more than it does."""
    return _compile(function, parallel=False, forceinline=True)


class SerialKernel:
    """A kernel too short to share out: one form only."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.__name__ = function.__name__
        self.__doc__ = function.__doc__
        self.py_func = function
        self.serial = _compile(function, parallel=False)

    def __call__(self, *args: Any) -> None:
        """Run on `args`."""
        if _state.instead is not None:
            _state.instead(self.forms(), 1, args)
        else:
            self.serial(*args)

    def forms(self) -> tuple[Any, ...]:
        """All that is compiled, the serial form first."""
        return (self.serial,)


class Kernel(SerialKernel):
    """One loop nest over `numba.prange` blocks, in its serial and parallel form."""

    def __init__(self, function: Callable[..., None]) -> None:
        super().__init__(function)
        self.parallel = _compile(function, parallel=True)

    def __call__(self, threads: int, *args: Any) -> None:
        """Run on `args`, in parallel where `threads` (from `workers`) is more than one."""
        if _state.instead is not None:
            _state.instead(self.forms(), threads, args)
            return
        if threads == 1:
            self.serial(*args)
            return
        _state.busy = True
        try:
            self.parallel(*args)
        finally:
            _state.busy = False

    def forms(self) -> tuple[Any, ...]:
        """All that is compiled, the serial form first."""
        return self.serial, self.parallel


class Launcher(Kernel):
    """A kernel that is its own launcher: its work is the size of its first operand."""

    prepares = True

    def __call__(self, *operands: Any) -> None:
        """Run on `operands`."""
        size = operands[0].size
        if size < PARALLEL_MIN and _state.instead is None:
            # Small calls feel every further call of Python's.
            self.serial(*operands)
        else:
            super().__call__(workers(size), *operands)


class Pointwise(Kernel):
    """The launcher that makes each element of its last operand from those of the one or two others.

    `of` is the function of these elements.
    """

    prepares = True

    def __init__(self, of: Callable[..., Any]) -> None:
        element = device_function(of)

        @loop
        def from_one(target, source):  # type: ignore[no-untyped-def]
            for i in range(target.size):
                target[i] = element(source[i])

        @loop
        def from_two(target, left, right):  # type: ignore[no-untyped-def]
            for i in range(target.size):
                target[i] = element(left[i], right[i])

        def of_one(threads, x, y):  # type: ignore[no-untyped-def]
            for t in prange(threads):
                first, last = bounds(t, threads, y.size)
                source, target = x[first:last], y[first:last]
                if same(target, source):
                    from_one(target, target)
                else:
                    from_one(target, source)

        def of_two(threads, a, b, y):  # type: ignore[no-untyped-def]
            for t in prange(threads):
                first, last = bounds(t, threads, y.size)
                left, right, target = a[first:last], b[first:last], y[first:last]
                if same(target, left):
                    from_two(target, target, right)
                else:
                    from_two(target, left, right)

        kernel = of_one if of.__code__.co_argcount == 1 else of_two
        # The cache keeps kernels by their names.
        kernel.__name__ = kernel.__qualname__ = of.__name__
        kernel.__module__, kernel.__doc__ = of.__module__, of.__doc__
        super().__init__(kernel)

    def __call__(self, *operands: Any) -> None:
        """Run over flat arrays of one size."""
        size = operands[-1].size
        if size < PARALLEL_MIN and _state.instead is None:
            # Small calls feel every further call of Python's.
            self.serial(1, *operands)
        else:
            threads = workers(size)
            super().__call__(threads, threads, *operands)


class CheckedKernel:
    """A serial kernel that checks shapes itself, and returns whether it has run on its operands.

    It is compiled for `signatures(number)` of float32 and float64. Other types are a TypeError.
    """

    def __init__(self, function: Callable[..., bool], signatures: Callable[[Any], Any]) -> None:
        self._serial = _compile(function, parallel=False)
        self._signatures = signatures
        self._found: dict[Any, Any] = {}

    def compiled(self, dtype: Any) -> Any:
        """Return what computes in `dtype`; None where nothing does, and while nothing may run."""
        found = self._found.get(dtype)
        if found is None and dtype in (np.float32, np.float64) and dtype.isnative:
            if numba.config.DISABLE_JIT:
                return None
            with global_compiler_lock:
                self._serial._can_compile = True
                for signature in self._signatures(numba.from_dtype(dtype)):
                    self._serial.compile(signature)
                self._serial._can_compile = False
            found = self._found[dtype] = self._serial
        return found if _state.instead is None else None


class compiling_only:  # noqa: N801 - reads as a statement: `with compiling_only():`
    """Let every kernel call of this thread compile both forms for its arguments and run neither."""

    def __enter__(self) -> None:
        _state.instead = _compile_forms

    def __exit__(self, *exc: object) -> None:
        _state.instead = None


def _compile_forms(forms: tuple[Any, ...], threads: int, args: tuple[Any, ...]) -> None:
    for form in forms:
        _compiled(form, args)


def _compiled(form: Any, args: tuple[Any, ...]) -> Any:
    """Code for arguments of these types, which does not look at types again."""
    if numba.config.DISABLE_JIT:
        return form
    return form.compile(tuple(numba.typeof(value) for value in args))


class serially:  # noqa: N801 - reads as a statement: `with serially(alone):`
    """Let every kernel call of this thread use one thread, where `whether`."""

    def __init__(self, whether: bool) -> None:
        self._whether = whether

    def __enter__(self) -> None:
        self._before = _state.busy
        _state.busy = self._before or self._whether

    def __exit__(self, *exc: object) -> None:
        _state.busy = self._before


def prepares(launcher: Callable[..., None]) -> Any:
    """Mark a launcher that reads no array, but those of shape (), and only launches kernels.

    So its kernel calls follow from the place of its arguments, and a replay may keep them.
    """
    launcher.prepares = True  # type: ignore[attr-defined]
    return launcher


def calling_thread() -> tuple[int, int]:
    """What the calls of a launcher depend on, besides its arguments."""
    return threading.get_ident(), workers(PARALLEL_MIN)


def calls_of(launcher: Any, arguments: Sequence[Any]) -> list[tuple[Any, tuple[Any, ...]]]:
    """Compiled code and arguments that a launcher would call in this thread; [] if unknown."""
    arrays = [value for value in arguments if isinstance(value, np.ndarray)]
    if not getattr(launcher, "prepares", False) or not all(array.ndim for array in arrays):
        return []
    calls: list[tuple[Any, tuple[Any, ...]]] = []

    def note(forms: tuple[Any, ...], threads: int, args: tuple[Any, ...]) -> None:
        calls.append((_compiled(forms[threads > 1], args), args))

    _state.instead = note
    try:
        # The first time, scratch may grow; the second time, what is written there shows.
        for _ in range(2):
            calls.clear()
            scratches = [array for pair in _state.scratch.values() for array in pair]
            for array in scratches:
                array.fill(np.nan)
            launcher(*arguments)
    finally:
        _state.instead = None
    if not all(np.isnan(array).all() for array in scratches):
        return []
    # A copy that the launcher has made would never change again.
    own = [*arrays, *scratches]
    passed = [a for _, args in calls for a in args if isinstance(a, np.ndarray) and a.size]
    lasting = all(any(np.may_share_memory(a, b) for b in own) for a in passed)
    return calls if lasting else []


def _compile(function: Callable[..., Any], *, parallel: bool, **more: Any) -> Any:
    if numba.config.DISABLE_JIT:
        # Compiled code neither warns nor raises where a number overflows.
        return np.errstate(all="ignore")(function)
    options = {
        "parallel": parallel,
        "error_model": "numpy",
        "nogil": True,
        **more,
    }
    dispatcher = njit(**options)(function)
    dispatcher._cache = KernelCache(function, options)
    return dispatcher
