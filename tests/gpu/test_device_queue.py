"""Devices, streams, graphs and pinned copies of `nbbn.device`, with stand-ins for CuPy's."""

from __future__ import annotations

import sys
import threading
import types

import numpy as np
import pytest

from nbbn.backend import device
from nbbn.backend.device import cublas


class Stream:
    """A stream that runs its work at once and notes what is asked of it."""

    def __init__(self, pointer=0, **options):
        self.ptr, self.options, self.calls = pointer, options, []

    def __enter__(self):
        Queue.current.append(self)

    def __exit__(self, *exc):
        Queue.current.pop()

    def synchronize(self):
        self.calls.append("synchronize")

    def begin_capture(self):
        self.calls.append("begin_capture")

    def end_capture(self):
        self.calls.append("end_capture")
        if Queue.refuses:
            raise RuntimeError("the capture was invalidated")
        return types.SimpleNamespace(launch=lambda stream: stream.calls.append("launch"))


class Queue:
    """What `cupy.cuda` has of streams and memory."""

    current: list[Stream]
    refuses = False

    MemoryPool = staticmethod(lambda: types.SimpleNamespace(malloc=None))
    using_allocator = staticmethod(lambda allocator: Stream())

    @staticmethod
    def Stream(non_blocking):  # noqa: N802 - CuPy's name
        return Stream(7, non_blocking=non_blocking)

    @staticmethod
    def get_current_stream():
        return Queue.current[-1]


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.setattr(device, "SIMULATED", False)
    monkeypatch.setattr(device, "xp", types.SimpleNamespace(cuda=Queue), raising=False)
    monkeypatch.setattr(Queue, "current", [Stream()], raising=False)
    monkeypatch.setattr(Queue, "refuses", False)
    return Queue


def test_a_graph_is_captured_on_a_stream_of_its_own_and_launched_on_the_current_one(queue):
    seen = []
    graph = device.Graph(lambda: seen.append(queue.get_current_stream()), capturable=True)
    first, second = seen
    assert first is second
    assert first.options == {"non_blocking": True}
    # The work before it is done, and so is its own, when the capture begins.
    assert queue.current[0].calls == ["synchronize"]
    assert first.calls == ["synchronize", "begin_capture", "end_capture"]
    graph.launch()
    assert len(seen) == 2
    assert queue.current[0].calls == ["synchronize", "launch"]


def test_a_capture_that_fails_names_its_cause_and_the_launches_go_on(queue):
    queue.refuses = True
    seen = []

    def work():
        seen.append(queue.get_current_stream())
        if queue.get_current_stream().calls[-1:] == ["begin_capture"]:
            raise RuntimeError("no copies in a capture")

    with pytest.warns(RuntimeWarning, match="no copies in a capture"):
        graph = device.Graph(work, capturable=True)
    assert seen[1].calls[-1] == "end_capture"
    graph.launch()
    assert seen[2:] == queue.current


class Pinned:
    """Where a copy goes: notes which bytes were to be copied, and on which stream."""

    def __init__(self):
        self.data = types.SimpleNamespace(copy_from_host_async=self.copy)
        self.addresses = []

    def copy(self, address, nbytes):
        self.addresses.append((address, nbytes))


def test_pinned_memory_is_used_again_only_when_every_stream_has_copied(queue, monkeypatch):
    pinned = types.SimpleNamespace(empty_pinned=np.empty)
    monkeypatch.setattr(device.importlib, "import_module", lambda name: pinned)
    staging, target = device._Staging(), Pinned()
    slots = device._Staging._SLOTS
    one, other = Stream(1), Stream(2)
    for k in range(slots):
        with one if k < 3 else other:
            staging.copy(np.array([k], np.float32), target)
    assert one.calls == other.calls == []
    assert len(set(target.addresses)) == slots
    staging.copy(np.array([1.0]), target)
    assert one.calls == other.calls == ["synchronize"]
    assert target.addresses[-1] == (target.addresses[0][0], 8)


def test_products_of_two_streams_have_two_workspaces(monkeypatch):
    calls = []

    def note(name):
        def call(*args):
            calls.append((name, [getattr(arg, "value", arg) for arg in args[1:]]))
            return 0

        return call

    functions = ("cublasCreate_v2", "cublasSetStream_v2", "cublasSetWorkspace_v2")
    library = types.SimpleNamespace(**{name: note(name) for name in functions})
    pointers = iter((1024, 2048, 4096))
    memory = types.SimpleNamespace(
        empty=lambda *_: types.SimpleNamespace(data=types.SimpleNamespace(ptr=next(pointers)))
    )
    monkeypatch.setattr(cublas, "library", lambda: library)
    monkeypatch.setattr(cublas, "_workspaces", {})
    monkeypatch.setattr(cublas.importlib, "import_module", lambda name: memory)
    cublas._handle.cache_clear()
    for stream in (5, 6, 5):
        cublas._prepared(stream)
    thread = threading.Thread(target=cublas._prepared, args=(5,))
    thread.start()
    thread.join()
    cublas._handle.cache_clear()
    given = [args[0] for name, args in calls if name == "cublasSetWorkspace_v2"]
    assert given == [1024, 2048, 1024, 1024]
    # The library forgets the workspace when it is given a stream.
    assert [name for name, _ in calls].count("cublasCreate_v2") == 1
    assert [name for name, _ in calls[1:]] == list(functions[1:]) * 4
    cublas.forget(5)
    assert [*cublas._workspaces] == [(6, 0)]


def refuse():
    raise RuntimeError("cudaErrorUnknown:\n the device fell off the bus")


@pytest.mark.parametrize(("version", "count", "reason"), [
    (0, refuse, "there is no NVIDIA driver here"),
    (13000, lambda: 0, "the driver reports no device"),
    (13000, refuse, "no CUDA device can be used (cudaErrorUnknown: the device fell off the bus): "
     "see nvidia-smi"),
])  # fmt: skip
def test_what_is_missing_is_one_line(queue, monkeypatch, version, count, reason):
    runtime = types.SimpleNamespace(driverGetVersion=lambda: version, getDeviceCount=count)
    monkeypatch.setattr(queue, "runtime", runtime, raising=False)
    assert device.missing.__wrapped__() == reason


def test_a_numpy_that_breaks_the_compiler_is_found_before_the_first_kernel(queue, monkeypatch):
    runtime = types.SimpleNamespace(driverGetVersion=lambda: 13000, getDeviceCount=lambda: 1)
    monkeypatch.setattr(queue, "runtime", runtime, raising=False)
    monkeypatch.setitem(sys.modules, "numba.cuda.np.arrayobj", None)
    reason = device.missing.__wrapped__()
    assert reason.startswith("numba-cuda cannot be imported (import of numba.cuda.np.arrayobj")
    assert reason.endswith("pip install 'nbbn[cuda13]' (or cuda12)")
