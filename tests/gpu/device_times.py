"""What `run_on_device.py` times. Microseconds are of the device, by events around CUDA graphs."""

from __future__ import annotations

import functools
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from device_checks import Setting, classifier, cuda, dtype_of, random_batches, synchronize

from nbbn import backend
from nbbn import functional as F  # noqa: N812 - the usual name

KINDS = ("inference", "forward", "backward")
# Passes over an array of x's size, the least that each needs where x does not fit into the L2.
PASSES = {"inference": 2, "forward": 3, "backward": 5}
SHAPES = [
    ((4096, 1024), "float32"),
    ((65536, 1024), "float32"),
    ((65536, 1024), "bfloat16"),
    ((2**20, 256), "float32"),
    ((256, 64, 112, 112), "float32"),
    ((256, 64, 112, 112), "bfloat16"),
    ((32, 512, 7, 7), "float32"),
]
TINY = [((8, 4), "float32"), ((2, 3, 4), "bfloat16")]
# Shapes below this many bytes fit the L2 of current devices: a share of the floor says nothing.
_IN_L2 = 64 << 20


class Clock(NamedTuple):
    """Events of a library: how to make one, to record it, and the milliseconds between two."""

    event: Callable[[], Any]
    record: Callable[[Any], None]
    elapsed: Callable[[Any, Any], float]


def cupy_clock() -> Clock:
    cuda = backend.device().xp.cuda
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
    """Microseconds of one run, over as many as make some 20 ms."""
    once = measured(clock, run, 1, 3)
    return measured(clock, run, max(3, min(200, int(2e4 / max(once, 1)))))


def device_time(setting: Setting, work: Callable[[], Any]) -> float:
    """Microseconds of `work` on the device, without what the host needs to submit it."""
    if setting.simulated:
        return wall_time(setting, work, 1)
    work()
    graph = backend.device().Graph(work, capturable=True)
    assert graph._graph is not None, "the capture failed"
    graph.launch()
    return settled(cupy_clock(), graph.launch)


def wall_time(setting: Setting, work: Callable[[], Any], repeats: int) -> float:
    """Microseconds of the host for one call, the device's work included."""
    work()
    synchronize(setting)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(setting)
    return (time.perf_counter() - start) * 1e6 / repeats


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


def bandwidth(setting: Setting) -> dict[str, Any]:
    """Batch normalization against the device's own copy: microseconds, GB/s, share of the floor."""
    size = setting.pick(2**30, 64)
    source, target = (backend.zeros(size, np.uint8, "cuda") for _ in range(2))
    copied = device_time(setting, functools.partial(np.copyto, target, source))
    rate = setting.notes["copy, GB/s"] = 2 * size / copied / 1e3
    del source, target
    rows = setting.notes["rows"] = []
    for shape, name in setting.pick(SHAPES, TINY):
        if setting.left() < 10:
            setting.notes["stopped"] = f"no time left before {shape} {name}"
            break
        x, dy = _operands(setting, shape, name)
        row: dict[str, Any] = {"shape": shape, "dtype": name}
        for kind, work in _works(x, dy, np.float32).items():
            microseconds = device_time(setting, work)
            moved = PASSES[kind] * x.nbytes
            row[kind] = {"us": microseconds, "GB/s": moved / microseconds / 1e3}
            if x.nbytes > _IN_L2:
                row[kind]["share of floor"] = moved / microseconds / 1e3 / rate
        rows.append(row)
        del x, dy, work
    return setting.notes


def torch_side_by_side(setting: Setting) -> dict[str, Any]:
    """PyTorch's batch normalization on the same shapes, both sides from CUDA graphs, in turns."""
    import torch

    assert setting.simulated or torch.cuda.is_available(), "this PyTorch sees no device"
    setting.notes["torch"] = f"{torch.__version__}, cuDNN {torch.backends.cudnn.version()}"
    rows = setting.notes["rows"] = []
    for shape, name in setting.pick(SHAPES, []):
        if setting.left() < 10:
            setting.notes["stopped"] = f"no time left before {shape} {name}"
            break
        x, dy = _operands(setting, shape, name)
        row: dict[str, Any] = {"shape": shape, "dtype": name}
        ours = _works(x, dy, np.float32)
        # Backward runs on the stream of its forward, which must be the one that captures.
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            theirs = _torch_works(torch, x, dy)
        for kind in KINDS:
            microseconds = device_time(setting, ours[kind])
            peer = _torch_time(torch, theirs[kind], stream)
            row[kind] = {"us": microseconds, "torch us": peer, "ratio": peer / microseconds}
        rows.append(row)
        del x, dy, ours, theirs
    return setting.notes


def _torch_works(torch: Any, x: Any, dy: Any) -> dict[str, Callable[[], Any]]:
    x, dy = torch.from_dlpack(x), torch.from_dlpack(dy)
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


def _torch_time(torch: Any, work: Callable[[], None], stream: Any) -> float:
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    torch.cuda.synchronize()
    return settled(torch_clock(torch), graph.replay)


def step(setting: Setting) -> dict[str, Any]:
    """One training step of 784-256-128-10 at batch 128, by the way in which it is launched."""
    rows, features = setting.pick((128, 784), (6, 12))
    sizes = setting.pick((784, 256, 128, 10), (12, 5, 10))
    batches = random_batches(setting.seed + 3, 4, rows, features)
    repeats = setting.pick(300, 1)
    _, _, replayed = classifier("cuda", 2, sizes)
    for batch in batches:
        replayed(*batch)
    (plan,) = replayed._plans.values()
    first = batches[0]
    setting.notes["eager, us"] = wall_time(
        setting, lambda: replayed._eager(*first), setting.pick(30, 1)
    )
    setting.notes["launch by launch, us"] = wall_time(setting, plan._work, repeats)  # type: ignore[attr-defined]
    setting.notes["graph, us"] = wall_time(setting, lambda: plan.replay(first), repeats)
    setting.notes["graph and its loss, us"] = wall_time(setting, lambda: replayed(*first), repeats)
    setting.notes["graph on the device alone, us"] = (
        None if setting.simulated else measured(cupy_clock(), plan._graph.launch, 100)  # type: ignore[attr-defined]
    )
    if not setting.simulated:
        try:
            setting.notes |= _torch_steps(setting, sizes, rows)
        except Exception as error:  # PyTorch is a guest: without it our own figures stand
            setting.notes["torch"] = f"{type(error).__name__}: {error}"[:300]
    return setting.notes


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
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        train_step()
    found["torch graph, us"] = wall_time(setting, graph.replay, 300)
    return found
