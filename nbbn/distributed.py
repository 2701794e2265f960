"""Data parallelism over MPI: the ranks of a run, and how they speak with each other.

Every rank runs the same program on its share of each batch. It needs `mpi4py`, and a launcher:
``mpiexec -n 4 nbbn train --distributed``, or a script that calls `start`.

What ranks say goes through collectives that do not block: a rank that waits looks at the clock, so
that one that never comes is named and ends the run instead of holding it for ever. All ranks make
the same collectives in the same order.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from . import backend
from ._validation import instance, real
from ._version import __version__
from .errors import ArgumentError, NbbnError

__all__ = ["Place", "Ranks", "start", "world"]

_Value = TypeVar("_Value")

# Seconds of waiting after which a rank tells the others that it is there; after which it leaves the
# core to others between two looks; and for which one that has failed listens for the others.
_TELLS, _SLEEPS, _LISTENS = 1.0, 0.05, 2.0
_PRESENT, _FAILED = 1, 2
# 4 MiB: below that latency counts, and there is little to hide.
_BUCKET = 1 << 22
# Ranks that are listed one by one.
_LISTED = 64


class Place(NamedTuple):
    """Where a rank runs.

    Attributes
    ----------
    host : str
    pid : int
        Its process there.
    cores : frozenset of int
        The cores that it may use.
    """

    host: str
    pid: int
    cores: frozenset[int]


class Ranks:
    """The ranks of a run; made by `start`.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm
        Duplicated: messages of others do not mix with these.
    timeout : float
        Seconds after which a rank that does not answer ends the run.

    Attributes
    ----------
    rank : int
        This process's number, 0 for the first.
    size : int
        Number of ranks.
    timeout : float
    places : tuple of Place
        Where each runs.
    bucket : int
        Bytes of gradients that are summed at once, while the backward pass goes on. Fewer than two
        buckets are one sum after it.
    """

    def __init__(self, comm: Any, timeout: float) -> None:
        self._comm, self._news = comm.Dup(), comm.Dup()
        self.rank, self.size, self.timeout = int(comm.rank), int(comm.size), timeout
        # Collectives so far, and what was sent and may not have been read.
        self._number = 0
        self._sent: list[Any] = []
        self.bucket = _BUCKET
        self._sums: list[tuple[Any, Any, Any] | None] = []
        self.places: tuple[Place, ...] = ()
        own = Place(socket.gethostname(), os.getpid(), _cores())
        self.places = tuple(self.exchange(own))

    def __deepcopy__(self, memo: Any) -> Ranks:
        return self

    def __repr__(self) -> str:
        return f"Ranks(rank {self.rank} of {self.size})"

    @property
    def cores(self) -> int:
        """Number of threads that leave the other ranks of this host theirs."""
        own = self.places[self.rank]
        sharing = [p for p in self.places if (p.host, p.cores) == (own.host, own.cores)]
        return max(1, len(own.cores) // len(sharing))

    def describe(self) -> str:
        """Say which rank is which process, in one line."""
        hosts: dict[str, list[str]] = {}
        for rank, place in enumerate(self.places):
            hosts.setdefault(place.host, []).append(f"{rank} (pid {place.pid})")
        count = f"{self.size} rank{'s' if self.size > 1 else ''}"
        if self.size > _LISTED:
            return f"{count} on {len(hosts)} hosts"
        listed = (f"{', '.join(ranks)} on {host}" for host, ranks in hosts.items())
        return f"{count}: {'; '.join(listed)}"

    def part(self, count: int) -> slice:
        """Return this rank's part of `count` things in a row, none of them twice."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    # ------------------------------------------------------------------- numbers

    def sum(self, array: Any) -> None:
        """Replace a C-contiguous array, on the host or a device, by its sum over all ranks.

        The order of the additions is MPI's, or NCCL's. Without NCCL an array on a device is staged
        through the host.
        """
        self._finish(self._begin(array))

    def begin_sum(self, array: Any) -> None:
        """Begin `sum` of an array, which nobody touches until `end_sums`."""
        self._sums.append(self._begin(array))

    def end_sums(self) -> None:
        """Wait for all sums that have begun."""
        for begun in self._sums:
            self._finish(begun)
        self._sums.clear()

    def _begin(self, array: Any) -> tuple[Any, Any, Any] | None:
        if self.size == 1:
            return None
        if not isinstance(array, np.ndarray) and self._device_adder is not None:
            self._device_adder(array)
            return None
        from mpi4py import MPI

        staged = backend.host(array)
        return self._comm.Iallreduce(MPI.IN_PLACE, staged, MPI.SUM), staged, array

    def _finish(self, begun: tuple[Any, Any, Any] | None) -> None:
        if begun is None:
            return
        request, staged, array = begun
        self._wait(request)
        if staged is not array:
            backend.assign(array, staged)

    def gather(self, own: np.ndarray, every: np.ndarray) -> None:
        """Write what each rank has in `own` to its row of `every`, (size, *own.shape)."""
        self._wait(self._comm.Iallgather(own, every))

    def total(self, own: np.ndarray, out: np.ndarray) -> None:
        """Write the sum over all ranks to `out`, added in the order of the ranks."""
        every = np.empty((self.size, *own.shape), own.dtype)
        self.gather(own, every)
        np.sum(every, axis=0, out=out)

    @functools.cached_property
    def _device_adder(self) -> Callable[[Any], None] | None:
        return backend.device_adder(self.exchange, self.rank)

    # ------------------------------------------------------------------- objects

    def exchange(self, value: _Value) -> list[_Value]:
        """Return what every rank has passed, in their order: anything that can be pickled."""
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        lengths = np.empty(self.size, np.int64)
        self.gather(np.array([own.size]), lengths)
        every = np.empty(lengths.sum(), np.uint8)
        self._wait(self._comm.Iallgatherv(own, (every, lengths)))
        ends = np.cumsum(lengths)
        return [
            pickle.loads(every[end - length : end].tobytes())
            for end, length in zip(ends, lengths, strict=True)
        ]

    def any(self, flag: bool) -> bool:
        """Whether any rank says so."""
        return any(self.exchange(bool(flag)))

    def first(self, function: Callable[[], _Value]) -> _Value:
        """Call `function` on rank 0 alone; return its result, or raise its error, on every rank."""
        outcome: Any = None
        if self.rank == 0:
            try:
                outcome = function(), None
            except (NbbnError, OSError) as found:
                outcome = None, found
        result, error = self.exchange(outcome)[0]
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def agree(self, values: Mapping[str, Any]) -> None:
        """Refuse to go on, on every rank, unless all of them pass the same, as text.

        An ArgumentError names the first value that differs, and a rank that has another than
        rank 0.
        """
        told = self.exchange(dict(_flat(values)))
        for name in {name: None for values in told for name in values}:
            for rank, values in enumerate(told):
                there, here = (v.get(name, "nothing") for v in (told[0], values))
                if there != here:
                    raise ArgumentError(
                        f"the ranks of a run must have the same {name}: {self._name(0)} has "
                        f"{there:.80}, {self._name(rank)} has {here:.80}"
                    )

    # ------------------------------------------------------------------- faults

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """End the whole run if this rank fails inside: say which one and why, then abort.

        An error that all ranks have alike, such as a bad argument, is raised as usual.
        """
        try:
            yield
        except BaseException as error:
            self._fail(error)
            raise

    def _wait(self, request: Any) -> None:
        """Wait until every rank has taken part."""
        self._number += 1
        if request.Test():
            return
        begin, told, waited = time.monotonic(), False, 0.0
        while not request.Test():
            waited = time.monotonic() - begin
            if waited < _SLEEPS:
                _leave_core()
                continue
            time.sleep(1e-3)
            if waited > _TELLS and not told:
                told = True
                self._tell(_PRESENT, self._number)
            if waited > self.timeout:
                self._give_up()
        if told:
            self._sent = [sent for sent in self._sent if not sent.Test()]

    def _tell(self, tag: int, value: Any) -> None:
        for rank in range(self.size):
            if rank != self.rank:
                self._sent.append(self._news.isend(value, rank, tag))

    def _heard(self, tag: int) -> dict[int, Any]:
        """Return the latest message of each rank, by rank."""
        from mpi4py import MPI

        found, status = {}, MPI.Status()
        while self._news.Iprobe(MPI.ANY_SOURCE, tag, status):
            source = status.Get_source()
            found[source] = self._news.recv(source=source, tag=tag)
        return found

    def _give_up(self) -> None:
        # Who waits for the silent one may do so in the collective before this.
        heard = self._heard(_PRESENT)
        present = {self.rank, *(r for r, number in heard.items() if number >= self._number - 1)}
        silent = [rank for rank in range(self.size) if rank not in present]
        if self.rank != min(present):
            # The first of those that are there speaks for all.
            time.sleep(_LISTENS)
        names = ", ".join(map(self._name, silent)) or "the network between the ranks"
        self._abort(
            f"no answer for {self.timeout:g} s from {names}: stopped, dead or busy; the run ends", 1
        )

    def _name(self, rank: int) -> str:
        # While `places` are exchanged nothing is known of others.
        place = self.places[rank : rank + 1]
        return f"rank {rank}" + "".join(f" (pid {p.pid} on {p.host})" for p in place)

    def _fail(self, error: BaseException) -> None:
        """Abort, unless all ranks fail alike."""
        kind = type(error).__name__
        self._tell(_FAILED, kind)
        begin, heard = time.monotonic(), {self.rank: kind}
        while len(heard) < self.size and time.monotonic() - begin < _LISTENS:
            heard |= self._heard(_FAILED)
            time.sleep(1e-3)
        if len(heard) == self.size and set(heard.values()) == {kind}:
            return
        expected = isinstance(error, NbbnError | OSError | KeyboardInterrupt | SystemExit)
        if not expected:
            traceback.print_exc()
        status = 130 if isinstance(error, KeyboardInterrupt) else 2 if expected else 1
        self._abort(f"{self._name(self.rank)} of {self.size} has failed: {kind}: {error}", status)

    def _abort(self, reason: str, status: int) -> None:
        sys.stdout.flush()
        print(f"nbbn: error: {reason}", file=sys.stderr, flush=True)
        self._comm.Abort(status)


_world: Ranks | None = None


def start(timeout: float = 25.0) -> Ranks:
    """Join the other ranks of this run, and check that all have the same code.

    Later calls return the same.

    Parameters
    ----------
    timeout : float, default 25
        Seconds that a rank waits for the others before it gives up and ends the run, naming those
        that do not answer. It must be longer than rank 0 needs to write a checkpoint.

    Returns
    -------
    Ranks

    Raises
    ------
    ArgumentError
        There is no mpi4py or no MPI; ranks have different versions of nbbn, NumPy or Numba.
    """
    global _world
    timeout = real(timeout, "timeout", above=0)
    if _world is None:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:  # the latter where mpi4py finds no MPI
            raise ArgumentError(
                f"a distributed run needs mpi4py and an MPI ({str(error).splitlines()[0]}): "
                "pip install 'nbbn[mpi]'"
            ) from None
        _world = Ranks(MPI.COMM_WORLD, timeout)
        with _world.together():
            _world.agree(_code())
    _world.timeout = timeout
    return _world


def world() -> Ranks | None:
    """Return the ranks of this run, or None where `start` has not been called.

    Returns
    -------
    Ranks or None
    """
    return _world


def check_ranks(ranks: Any) -> None:
    """Refuse what is neither None nor what `start` has returned."""
    if ranks is not None:
        instance(ranks, Ranks, "ranks")


def salt() -> int:
    """Return what makes random numbers of a rank its own: 0 for the first."""
    return 0 if _world is None else _world.rank * 0x9E3779B97F4A7C15 % 2**64


def digest(*arrays: Any) -> str:
    """Tell arrays from others by few letters."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(backend.host(array)).data)
    return found.hexdigest()[:16]


def _code() -> dict[str, str]:
    """What must be the same code everywhere."""
    from importlib.metadata import version

    sources = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        sources.update(f"{path.relative_to(folder)}\n".encode())
        sources.update(path.read_bytes())
    return {
        "nbbn": __version__,
        "code of nbbn": sources.hexdigest()[:16],
        "Python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "numba", "llvmlite")},
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested mappings as text, by names with dots."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


_leave_core = getattr(os, "sched_yield", functools.partial(time.sleep, 0))
