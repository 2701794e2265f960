"""What `run_on_device.py` times. Microseconds are of the device, by events around CUDA graphs.

The clocks of an idle device are low: everything is repeated for a while before it is timed. All
runs work on the same arrays, so that small ones are in the L2, for nbbn and for PyTorch.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from nbbn import backend
from nbbn import functional as F  # noqa: N812 - the usual name
from tests.gpu.device_checks import Setting, classifier, cuda, dtype_of, random_batches, synchronize
from tests.gpu.device_targets import Skipped

KINDS = ("inference", "forward", "backward")
# Passes over an array of x's size, the least that each needs where x does not fit into the L2.
PASSES = {"inference": 2, "forward": 3, "backward": 5}
SHAPES = [
    (shape, name)
    for shape in (
        (4096, 1024), (65536, 1024), (2**20, 256), (256, 64, 112, 112), (32, 512, 7, 7),
    )
    for name in ("float32", "bfloat16")
]  # fmt: skip
TINY = [((8, 4), "float32"), ((2, 3, 4), "bfloat16")]
# Shapes below this many bytes fit the L2 of current devices: a share of the floor says nothing.
_IN_L2 = 64 << 20
# Runs in one graph: what it costs the host to submit it is a part of the device's time no more.
_IN_GRAPH = 10
_WARM_SECONDS = 0.15


class Clock(NamedTuple):
    """Events of a library: how to make one, to record it, and the milliseconds between two."""

    event: Callable[[], Any]
    record: Callable[[Any], None]
    elapsed: Callable[[Any, Any], float]


def cupy_clock() -> Clock:
    cuda = backend.device_module().xp.cuda
    return Clock(cuda.Event, lambda event: event.record(), cuda.get_elapsed_time)


def torch_clock(torch: Any) -> Clock:
    event = functools.partial(torch.cuda.Event, enable_timing=True)
    return Clock(event, lambda event: event.record(), lambda a, b: a.elapsed_time(b))


def measured(clock: Clock, run: Callable[[], None], repeats: int, rounds: int = 5) -> float:
    """Median over rounds of the microseconds of one run, from events around `repeats` runs."""
    times = []
    for _ in range(rounds):
        start, stop = clock.event(), clock.event()
        clock.record(start)
        for _ in range(repeats):
            run()
        clock.record(stop)
        stop.synchronize()
        times.append(clock.elapsed(start, stop) * 1000 / repeats)
    return statistics.median(times)


def settled(clock: Clock, run: Callable[[], None]) -> float:
    """Microseconds of one run, over as many as make some 20 ms, after a warm-up."""
    once = measured(clock, run, 1, 3)
    measured(clock, run, max(3, min(20_000, int(_WARM_SECONDS * 1e6 / max(once, 1)))), 1)
    return measured(clock, run, max(3, min(200, int(2e4 / max(once, 1)))))


def device_time(setting: Setting, work: Callable[[], Any]) -> float:
    """Microseconds of `work` on the device, without what the host needs to submit it."""
    if setting.simulated:
        return wall_time(setting, work, 1)
    work()

    def several() -> None:
        for _ in range(_IN_GRAPH):
            work()

    graph = backend.device_module().Graph(several, capturable=True)
    assert graph._graph is not None, "the capture failed"
    return settled(cupy_clock(), graph.launch) / _IN_GRAPH


def wall_time(setting: Setting, work: Callable[[], Any], repeats: int) -> float:
    """Median of the microseconds of the host for one call, the device's work included."""
    start = time.perf_counter()
    while True:
        work()
        synchronize(setting)
        if setting.simulated or time.perf_counter() - start > _WARM_SECONDS:
            break
    times = []
    for _ in range(setting.pick(5, 1)):
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(setting)
        times.append((time.perf_counter() - start) * 1e6 / repeats)
    return statistics.median(times)


def _operands(setting: Setting, shape: tuple[int, ...], name: str) -> tuple[Any, Any]:
    """Two arrays on the device; a small one repeated, since the host draws slowly."""
    rng = np.random.default_rng(setting.seed)
    block = rng.normal(size=(min(shape[0], 64), *shape[1:])).astype(dtype_of(name))
    x = backend.empty(shape, block.dtype, "cuda")
    part = cuda(block)
    for start in range(0, shape[0], len(block)):
        rest = min(len(block), shape[0] - start)
        x[start : start + rest] = part[:rest]
    return x, x.copy()


def _works(x: Any, dy: Any, compute: Any) -> dict[str, Callable[[], Any]]:
    channels = x.shape[1]
    gamma, beta = (backend.ones((channels,), compute, "cuda") for _ in range(2))
    y, dx = (backend.empty(x.shape, x.dtype, "cuda") for _ in range(2))
    _, stats = F.batch_norm_train(x, gamma, beta)
    return {
        "inference": lambda: F.batch_norm_infer(x, stats.mean, stats.var, gamma, beta, out=y),
        "forward": lambda: F.batch_norm_train(x, gamma, beta, out=y),
        "backward": lambda: F.batch_norm_backward(dy, x, stats, gamma, out=dx),
    }


def copy_rate(setting: Setting) -> float:
    """Bytes per microsecond, read and written, of the fastest of the device's ways to copy."""
    size = setting.pick(2**28, 16)
    source, target = (backend.zeros(size, np.float32, "cuda") for _ in range(2))
    ways = {"memcpy": np.copyto, "kernel": lambda out, x: np.positive(x, out)}
    rates = {
        name: 2 * source.nbytes / device_time(setting, functools.partial(way, target, source))
        for name, way in ways.items()
    }
    setting.notes["copy, GB/s"] = {name: rate / 1e3 for name, rate in rates.items()}
    return max(rates.values())


def _each_shape(setting: Setting, shapes: list[Any]) -> Iterator[tuple[dict[str, Any], Any, Any]]:
    """Yield a row for the table, x and dy for each shape, while there is time."""
    rows = setting.notes["rows"] = []
    for shape, name in shapes:
        if setting.left() < 10:
            setting.notes["stopped"] = f"no time left before {shape} {name}"
            return
        if not _fits(setting, math.prod(shape) * dtype_of(name).itemsize):
            setting.notes.setdefault("too large for this device", []).append([shape, name])
            continue
        row: dict[str, Any] = {"shape": shape, "dtype": name}
        yield row, *_operands(setting, shape, name)
        rows.append(row)
        setting.keep()


def _fits(setting: Setting, nbytes: int) -> bool:
    """Whether x, dy, y and dx fit, and what PyTorch and its graphs keep of the same size."""
    if setting.simulated:
        return True
    xp = backend.device_module().xp
    xp.get_default_memory_pool().free_all_blocks()
    return bool(xp.cuda.runtime.memGetInfo()[0] > 12 * nbytes)


def bandwidth(setting: Setting) -> None:
    """Batch normalization against the device's own copy: microseconds, GB/s, share of the floor."""
    rate = copy_rate(setting)
    setting.keep()
    for row, x, dy in _each_shape(setting, setting.pick(SHAPES, TINY)):
        for kind, work in _works(x, dy, np.float32).items():
            microseconds = device_time(setting, work)
            moved = PASSES[kind] * x.nbytes / microseconds
            row[kind] = {"us": microseconds, "GB/s": moved / 1e3}
            if x.nbytes > _IN_L2:
                row[kind]["share of floor"] = moved / rate


def blocks(setting: Setting) -> None:
    """Large shapes by the number of blocks that share a reduction: what would be the best one."""
    from nbbn.kernels import _cuda

    usual = _cuda.BLOCKS
    large = [s for s in SHAPES if math.prod(s[0]) * 2 > _IN_L2]
    try:
        for row, x, dy in _each_shape(setting, setting.pick(large, TINY)):
            for count in setting.pick((264, 396, 528, 792, 1056, 2112, 4224), (24, 48)):
                # Scratch is made for so many blocks.
                _cuda.BLOCKS, _cuda._scratch = count, {}
                works = _works(x, dy, np.float32)
                row[f"{count} blocks"] = {
                    kind: device_time(setting, works[kind]) for kind in ("forward", "backward")
                }
    finally:
        _cuda.BLOCKS, _cuda._scratch = usual, {}


def torch_side_by_side(setting: Setting) -> None:
    """PyTorch's batch normalization on the same shapes, both sides from CUDA graphs, in turns."""
    try:
        import torch
    except ImportError as error:
        raise Skipped(f"there is no PyTorch: {error}") from error
    setting.notes["torch"] = f"{torch.__version__}, CUDA {torch.version.cuda}"
    if setting.simulated:
        return
    if not torch.cuda.is_available():
        raise Skipped(f"PyTorch {torch.__version__} sees no device")
    setting.notes["cuDNN"] = torch.backends.cudnn.version()
    for row, x, dy in _each_shape(setting, SHAPES):
        ours = _works(x, dy, np.float32)
        # Backward runs on the stream of its forward, which must be the one that captures.
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            theirs = _torch_works(torch, x, dy)
        for kind in KINDS:
            microseconds = device_time(setting, ours[kind])
            peer, way = _torch_time(torch, theirs[kind], stream)
            ratio = peer / microseconds
            row[kind] = {"us": microseconds, f"torch us, {way}": peer, "ratio": ratio}
        del ours, theirs


def _torch_view(torch: Any, array: Any) -> Any:
    # As integers: bfloat16 is not in every version of the exchange.
    if array.dtype == np.float32:
        return torch.from_dlpack(array)
    return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)


def _torch_works(torch: Any, x: Any, dy: Any) -> dict[str, Callable[[], Any]]:
    x, dy = (_torch_view(torch, array) for array in (x, dy))
    norm = torch.nn.functional.batch_norm
    channels = x.shape[1]
    gamma, beta, mean, var = (
        torch.full((channels,), value, device="cuda") for value in (1.0, 0.0, 0.0, 1.0)
    )
    source = x.detach().requires_grad_()
    weight, bias = (p.clone().requires_grad_() for p in (gamma, beta))
    y = norm(source, None, None, weight, bias, training=True)
    leaves = (source, weight, bias)

    def forward() -> None:
        with torch.no_grad():
            norm(x, None, None, gamma, beta, training=True)

    def inference() -> None:
        with torch.no_grad():
            norm(x, mean, var, gamma, beta)

    def backward() -> None:
        torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return {"forward": forward, "inference": inference, "backward": backward}


def _torch_time(torch: Any, work: Callable[[], None], stream: Any) -> tuple[float, str]:
    """Microseconds of `work`, and whether it was a graph or, where that fails, eager."""
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(_IN_GRAPH):
                work()
    except Exception:  # whatever cannot be captured is timed as it is
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            return settled(torch_clock(torch), work), "eager"
    torch.cuda.synchronize()
    return settled(torch_clock(torch), graph.replay) / _IN_GRAPH, "graph"


def step(setting: Setting) -> None:
    """One training step of 784-256-128-10 at batch 128, by the way in which it is launched."""
    rows, features = setting.pick((128, 784), (6, 12))
    sizes = setting.pick((784, 256, 128, 10), (12, 5, 10))
    batches = random_batches(setting.seed + 3, 4, rows, features)
    _, _, replayed = classifier("cuda", 2, sizes)
    for batch in batches:
        replayed(*batch)
    (plan,) = replayed._plans.values()
    first = batches[0]
    ways = {
        "eager": (lambda: replayed._eager(*first), 30),
        "launch by launch": (plan._work, 300),
        "graph": (lambda: plan.replay(first), 300),
        "graph and its loss": (lambda: replayed(*first), 300),
    }
    for way, (work, repeats) in ways.items():
        setting.notes[f"{way}, us"] = wall_time(setting, work, setting.pick(repeats, 1))
        setting.keep()
    if setting.simulated:
        return
    assert plan._graph._graph is not None, "the capture failed"
    setting.notes["graph on the device alone, us"] = settled(cupy_clock(), plan._graph.launch)
    setting.keep()
    try:
        setting.notes |= _torch_steps(setting, sizes, rows)
    except Exception as error:  # PyTorch is a guest: without it our own figures stand
        setting.notes["torch"] = f"{type(error).__name__}: {error}"[:300]


def _torch_steps(setting: Setting, sizes: tuple[int, ...], rows: int) -> dict[str, float]:
    """The same step by PyTorch, eager and as a CUDA graph, both with fused Adam."""
    import torch

    layers: list[Any] = []
    for features, width in itertools.pairwise(sizes[:-1]):
        layers += [torch.nn.Linear(features, width, bias=False), torch.nn.BatchNorm1d(width)]
        layers.append(torch.nn.ReLU())
    model = torch.nn.Sequential(*layers, torch.nn.Linear(*sizes[-2:])).cuda()
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=True)
    x = torch.rand(rows, sizes[0], device="cuda")
    y = torch.randint(0, sizes[-1], (rows,), device="cuda")

    def train_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(5):
            train_step()
    torch.cuda.synchronize()
    found = {"torch eager, us": wall_time(setting, train_step, 100)}
    setting.notes |= found
    setting.keep()
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        train_step()
    return {"torch graph, us": wall_time(setting, graph.replay, 300)}
