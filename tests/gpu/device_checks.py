"""What `run_on_device.py` checks: each section takes a Setting and notes in it what it finds.

A section that finds something wrong raises. `setting.keep()` writes what was noted up to then: a
crash of the process leaves that.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import nbbn
from nbbn import backend, data, losses, optim, train
from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.backend.recorder import GraphPlan
from tests.gpu.device_targets import LEAST_ACCURACY, Skipped
from tests.helpers import reference

# Largest relative L2 errors against float64, by storage type: y, dx, and per-channel sums.
LIMITS = {
    "float64": (1e-13, 1e-12, 1e-11),
    "float32": (2e-6, 5e-6, 2e-5),
    "float16": (5e-4, 1e-3, 2e-3),
    "bfloat16": (4e-3, 8e-3, 1e-2),
}


class Setting(NamedTuple):
    """What a section may know: the seed, the time it may take, and how large to be."""

    seed: int
    simulated: bool
    data_dir: str | None
    deadline: float
    notes: dict[str, Any]
    keep: Callable[[], None]

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def pick(self, real: Any, simulated: Any) -> Any:
        return simulated if self.simulated else real


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def cuda(array: np.ndarray) -> Any:
    return backend.to(array, "cuda")


def synchronize(setting: Setting) -> None:
    if not setting.simulated:
        backend.device_module().xp.cuda.Device().synchronize()


def relative(got: Any, want: np.ndarray) -> float:
    got = np.asarray(backend.host(got), np.float64)
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))


# ---------------------------------------------------------------- correctness


def correctness(setting: Setting) -> None:
    """Batch normalization of every type and layout, then every other kernel, on fresh data."""
    shapes = setting.pick(
        [
            ((1000, 384), 1),
            ((7, 33), 1),
            ((16, 48, 14, 14), 1),
            ((5, 7, 9), 1),
            ((8, 6, 6, 40), -1),
        ],
        [((7, 4), 1), ((2, 3, 4), 1)],
    )
    rng = np.random.default_rng(setting.seed)
    worst: dict[str, list[float]] = setting.notes.setdefault(
        "worst relative error: y, dx, sums", {}
    )
    failures = []
    for name, limits in LIMITS.items():
        worst[name] = [0.0, 0.0, 0.0]
        for shape, axis in shapes:
            for relu in (False, True):
                errors = batch_norm_errors(rng, shape, axis, dtype_of(name), relu)
                worst[name] = np.maximum(worst[name], errors).tolist()  # NaN stays
                if not np.all(np.less_equal(errors, limits)):
                    failures.append((name, shape, axis, relu, errors))
        setting.keep()
    others = setting.notes.setdefault("other kernels against the CPU", {})
    for name, limit, error in other_kernels(rng):
        others[name] = error
        if not error <= limit:
            failures.append((name, error, limit))
    assert not failures, failures


def batch_norm_errors(
    rng: np.random.Generator, shape: tuple[int, ...], axis: int, dtype: Any, relu: bool
) -> list[float]:
    """Errors of y, dx, and the larger one of dgamma and dbeta, all against float64."""
    channels = shape[axis]
    offset = rng.normal(0, 20, channels).reshape([-1 if d == axis % len(shape) else 1
                                                  for d in range(len(shape))])  # fmt: skip
    x = (rng.normal(size=shape) * 2 + offset).astype(dtype)
    dy = rng.normal(size=shape).astype(dtype)
    compute = np.float64 if dtype == np.float64 else np.float32
    gamma, beta = rng.normal(1, 0.5, (2, channels)).astype(compute)
    activation = "relu" if relu else None
    xd, dyd, gd, bd = map(cuda, (x, dy, gamma, beta))
    y, stats = F.batch_norm_train(xd, gd, bd, axis=axis, activation=activation)
    dx, dgamma, dbeta = F.batch_norm_backward(dyd, xd, stats, gd, axis=axis, y=y if relu else None)
    want, _ = reference.batch_norm_train(x, gamma, beta, axis=axis, activation=activation)
    # The mask is the device's own: a value that rounds to 0 may fall to either side.
    mask = np.asarray(backend.host(y), np.float64) if relu else None
    want_dx, want_dgamma, want_dbeta = reference.batch_norm_backward(
        dy, x, gamma, axis=axis, y=mask
    )
    sums = np.maximum(relative(dgamma, want_dgamma), relative(dbeta, want_dbeta))
    return [relative(y, want), relative(dx, want_dx), float(sums)]


def other_kernels(rng: np.random.Generator) -> Any:
    """Yield (name, limit, relative error against the CPU) of every other kernel."""
    x, dy = rng.normal(size=(2, 37, 19)).astype(np.float32)
    for op in ("relu", "sigmoid", "tanh", "softmax", "log_softmax"):
        y = getattr(F, op)(x)
        yield op, 1e-6, relative(getattr(F, op)(cuda(x)), y)
        backward = getattr(F, f"{op}_backward")
        yield f"{op}_backward", 2e-6, relative(backward(cuda(dy), cuda(y)), backward(dy, y))
    labels = rng.integers(0, 19, 37)
    loss = F.cross_entropy(cuda(x), cuda(labels))
    yield "cross_entropy", 1e-6, relative(loss, F.cross_entropy(x, labels))
    gradient = F.cross_entropy_backward(cuda(x), cuda(labels))
    yield "cross_entropy_backward", 2e-6, relative(gradient, F.cross_entropy_backward(x, labels))
    weight = rng.uniform(0.5, 2, x.shape[1]).astype(np.float32)
    options = {"ignore_index": int(labels[0]), "label_smoothing": 0.1}
    for function in (F.cross_entropy, F.cross_entropy_backward):
        found = function(cuda(x), cuda(labels), weight=cuda(weight), **options)
        expected = function(x, labels, weight=weight, **options)
        yield f"{function.__name__} with all options", 2e-6, relative(found, expected)
    targets = rng.uniform(size=x.shape).astype(np.float32)
    for loss in (losses.mse, losses.huber, losses.binary_cross_entropy, losses.cross_entropy):
        found = loss(nbbn.Tensor(cuda(x)), cuda(targets)).data
        yield f"{loss.__name__} of numbers", 2e-6, relative(found, loss(x, targets).data)
    for layer in (nbbn.Dropout(0.3, rng=3), nbbn.Dense(19, 5, rng=3)):
        expected = layer(x).data
        again = nbbn.Dropout(0.3, rng=3) if isinstance(layer, nbbn.Dropout) else layer
        yield type(layer).__name__, 1e-6, relative(again.to("cuda")(cuda(x)).data, expected)
    for name in optim.OPTIMIZERS:
        yield name, 1e-5, _optimizer_error(name, x, dy)
    images = rng.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    for device in ("cpu", "cuda"):
        batches = data.Batches(images, np.arange(50), 16, rng=1, device=device)
        found = [(backend.host(a), backend.host(b)) for a, b in batches]
        if device == "cpu":
            expected = found
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(found, expected, strict=True))
    yield "gather", 1e-6, max(relative(a[0], b[0]) for a, b in zip(found, expected, strict=True))


def _optimizer_error(name: str, x: np.ndarray, dy: np.ndarray) -> float:
    results = []
    for device in ("cpu", "cuda"):
        parameter = nbbn.Parameter(x)
        parameter.data = backend.to(x.copy(), device)
        optimizer = optim.OPTIMIZERS[name]([parameter], lr=0.1, weight_decay=0.01)
        for k in range(3):
            parameter.grad = backend.to(dy * (k + 1), device)
            optimizer.step()
            optimizer.zero_grad()
        results.append(parameter.numpy())
    return relative(results[1], results[0].astype(np.float64))


def repeatability(setting: Setting) -> None:
    """The same bits in each of 20 runs, forward and backward."""
    rng = np.random.default_rng(setting.seed + 1)
    shapes = setting.pick([(4096, 512), (32, 64, 56, 56), (257, 33)], [(9, 6), (3, 4, 5)])
    runs = setting.notes["runs"] = setting.pick(20, 2)
    for shape in shapes:
        for name in ("float32", "bfloat16"):
            x, dy = (cuda(rng.normal(size=shape).astype(dtype_of(name))) for _ in range(2))
            seen = set()
            for _ in range(runs):
                y, stats = F.batch_norm_train(x)
                results = (y, *stats[:3], *F.batch_norm_backward(dy, x, stats))
                seen.add(b"".join(backend.host(a).tobytes() for a in results))
            assert len(seen) == 1, f"{len(seen)} different results for {shape} {name}"


def huge(setting: Setting) -> None:
    """Rows of more than 2^32 elements, in whole lanes and one by one."""
    rows = setting.pick(2**22 + 3, 40)
    for columns in setting.pick((1032, 1028), (8, 6)):
        xp = backend.device_module().xp
        if not setting.simulated:
            # x, y and dx in float16, and what the sums need by the way.
            xp.get_default_memory_pool().free_all_blocks()
            needed, free = 3 * 2 * rows * columns + 2**32, xp.cuda.runtime.memGetInfo()[0]
            if free < needed:
                have = f"{free / 2**30:.0f} GiB are free"
                raise Skipped(f"this takes {needed / 2**30:.0f} GiB of the device's memory, {have}")
        notes = setting.notes[f"{rows}x{columns}"] = {}
        _huge(setting, xp, rows, columns, notes)
        setting.keep()


def _huge(setting: Setting, xp: Any, rows: int, columns: int, notes: dict[str, float]) -> None:
    """Compare with sums taken in float64 on the device."""
    if setting.simulated:
        x = cuda(np.random.default_rng(setting.seed).normal(size=(rows, columns)).astype("f2"))
    else:
        assert rows * columns > 2**32
        x = xp.empty((rows, columns), np.float16)
        chunk = 2**16
        for start in range(0, rows, chunk):
            part = xp.arange(start, min(start + chunk, rows), dtype=np.uint64)[:, None]
            mixed = part * np.uint64(2654435761) + xp.arange(columns, dtype=np.uint64)[None] * 40503
            x[start : start + chunk] = (mixed % np.uint64(4093)).astype(np.float32) / 1024 - 1
    total, square = (backend.zeros(columns, np.float64, "cuda") for _ in range(2))
    step = setting.pick(2**16, 16)
    for start in range(0, rows, step):
        part = x[start : start + step].astype(np.float64)
        np.add(total, np.sum(part, axis=0), total)
        np.add(square, np.sum(part * part, axis=0), square)
    mean = backend.host(total) / rows
    var = backend.host(square) / rows - mean**2
    y, stats = F.batch_norm_train(x)
    notes["mean"] = relative(stats.mean, mean)
    notes["var"] = relative(stats.var, var)
    picked = [0, 1, rows // 2, min(2**32 // columns, rows - 2), rows - 1]
    got, source = (np.stack([backend.host(a[i]) for i in picked]) for a in (y, x))
    want = (source.astype(np.float64) - mean) / np.sqrt(var + 1e-5)
    notes["y"] = relative(got, want)
    dx, _, dbeta = F.batch_norm_backward(y, x, stats)
    notes["dbeta over rows"] = float(np.abs(backend.host(dbeta)).max() / rows)
    # dy = y lies along x_hat: what is left of it is noise.
    notes["dx"] = float(np.abs(backend.host(dx[rows - 1]).astype(np.float64)).max())
    limits = {"mean": 1e-4, "var": 1e-4, "y": 1e-3, "dbeta over rows": 1e-3, "dx": 1e-2}
    wrong = {k: notes[k] for k, limit in limits.items() if not notes[k] <= limit}
    assert not wrong, wrong


# ---------------------------------------------------------------- training


def classifier(device: str, seed: int = 0, sizes: Any = (784, 256, 128, 10)) -> Any:
    model = nbbn.mlp(sizes, rng=seed).to(device)
    optimizer = optim.Adam(model.parameters(), lr=optim.Cosine(1e-3, 1000))
    return model, optimizer, train.record_step(model, losses.cross_entropy, optimizer)


def random_batches(seed: int, count: int, rows: int = 128, features: int = 784) -> list[Any]:
    rng = np.random.default_rng(seed)
    x = rng.random((count, rows, features), dtype=np.float32)
    return [(cuda(a), cuda(rng.integers(0, 10, rows))) for a in x]


def graph(setting: Setting) -> None:
    """A captured step gives the bits of the eager one, its rate and its masks move on."""
    rows, features = setting.pick((128, 784), (6, 12))
    sizes = setting.pick((784, 256, 128, 10), (12, 5, 10))
    batches = random_batches(setting.seed + 2, 8, rows, features)
    results = []
    for replayed in (True, False):
        model, _, step = classifier("cuda", 1, sizes)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses_seen = [step(*b) if replayed else step._eager(*b).item() for b in batches]
        results.append((losses_seen, model.state_dict()))
        if replayed:
            (plan,) = step._plans.values()
            assert isinstance(plan, GraphPlan)
            setting.notes["captured"] = plan._graph._graph is not None
            setting.notes["warnings"] = [str(w.message) for w in caught]
            setting.notes["launches"] = len(plan._launches)
    assert results[0][0] == results[1][0], (results[0][0], results[1][0])
    for name, array in results[0][1].items():
        assert np.array_equal(array, results[1][1][name]), name
    assert setting.simulated or setting.notes["captured"], setting.notes["warnings"]


def mnist(setting: Setting) -> None:
    """Train on MNIST to 98 % test accuracy."""
    found = data.load_mnist(setting.data_dir)
    count, tested = setting.pick((60_000, 10_000), (64, 32))
    model = nbbn.mlp(setting.pick((784, 256, 128, 10), (784, 4, 10)), rng=0).to("cuda")
    batches = data.Batches(
        found.train_images[:count], found.train_labels[:count], setting.pick(128, 32),
        rng=0, reuse=True, device="cuda",
    )  # fmt: skip
    test = data.Batches(
        found.test_images[:tested], found.test_labels[:tested], setting.pick(1000, 32),
        shuffle=False, reuse=True, device="cuda",
    )  # fmt: skip
    epochs = setting.pick(5, 1)
    optimizer = optim.Adam(model.parameters(), lr=optim.OneCycle(4e-3, epochs * len(batches)))
    start = time.perf_counter()
    history = train.fit(model, batches, optimizer, epochs=epochs, test=test)
    setting.notes["seconds"] = time.perf_counter() - start
    setting.notes["epochs"] = [
        {"loss": e.loss, "test accuracy": e.test.accuracy, "images/s": e.images_per_second}
        for e in history
    ]
    best = max(epoch.test.accuracy for epoch in history)
    assert setting.simulated or best >= LEAST_ACCURACY, f"the best test accuracy is {best}"
