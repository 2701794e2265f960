"""One table of the functions on arrays, forward and back: a new one is a line or two here.

`functional/test_memory` runs each in every layout of memory, into given results, in half precision,
on empty batches, for any number of threads and on what must be refused; `gpu/test_arrays` compares
the device with the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from nbbn import backend
from nbbn import functional as F  # noqa: N812 - the usual name
from nbbn.functional.recurrent import KINDS

Shape = tuple[int, ...]
LABELS = np.array([2, 0, 3, 3, 1, 0])
# Operands of x's own type, also where that is a half one.
LIKE_X = ("x", "residual", "projected")
NORM = ("out", "out_dgamma", "out_dbeta")
CONVOLUTION = ("out", "out_dweight", "out_dbias")


class Function(NamedTuple):
    name: str
    # Of the operands, x first.
    shapes: dict[str, Shape]
    # Of the operands: y, or a tuple with y first.
    forward: Callable[..., Any]
    # Of dy, what forward has returned, and the operands: the gradients.
    backward: Callable[..., Any]
    # The results that can be given: whether y, and which gradients, in their order.
    gives_y: bool = True
    outs: tuple[str, ...] = ("out",)
    # Axes of x that may have no length.
    empty: tuple[int, ...] = (0,)
    # Whether sums follow the order of axes in memory, so that it may cost the last bits.
    in_memory_order: bool = False

    @property
    def size(self) -> int:
        """Elements of x."""
        return math.prod(next(iter(self.shapes.values())))

    def operands(self, rng: np.random.Generator, dtype: Any = np.float32) -> list[np.ndarray]:
        """Draw the operands; of half types, those that are not like x are float32."""
        wide = np.float64 if np.dtype(dtype).itemsize == 8 else np.float32
        found = []
        for name, shape in self.shapes.items():
            array = rng.normal(size=shape)
            if name in ("var", "weights"):
                array = np.abs(array) + 0.5
            found.append(array.astype(dtype if name in LIKE_X else wide))
        return found

    def everything(self, *operands: Any, dy: Any = None) -> list[Any]:
        """Return all arrays that forward and backward give."""
        found = self.forward(*operands)
        gradients = self.backward(upstream(found) if dy is None else dy, found, *operands)
        return [*arrays(found), *arrays(gradients)]


def arrays(found: Any) -> list[Any]:
    """List the arrays in a result, those of its statistics too."""
    if isinstance(found, tuple):
        return [array for part in found for array in arrays(part)]
    return [found] if backend.is_array(found) else []


def first(found: Any) -> Any:
    """Take y from what a forward has returned."""
    return found[0] if isinstance(found, tuple) else found


def upstream(found: Any) -> np.ndarray:
    """Make a dy for what a forward has returned."""
    y = first(found)
    return np.cos(np.arange(y.size)).reshape(y.shape).astype(y.dtype)


def _labels(x: Any) -> Any:
    return backend.to(LABELS, backend.device_of(x)) if backend.is_array(x) else LABELS


def activation(name: str, shape: Shape = (3, 5, 7), of: str = "y", **options: Any) -> Function:
    """Make the case of an activation, whose gradient follows from its output or from its input."""
    function, backward = getattr(F, name), getattr(F, f"{name}_backward")
    label = ", ".join([name, *map(str, options.values())])
    return Function(
        f"{label} {shape}",
        {"x": shape},
        lambda x, **out: function(x, **options, **out),
        lambda dy, y, x, **out: backward(dy, y if of == "y" else x, **options, **out),
        empty=tuple(range(len(shape))),
    )


def cross_entropy(reduction: str, shape: Shape = (6, 4)) -> Function:
    options: dict[str, Any] = {"reduction": reduction}
    return Function(
        f"cross_entropy, {reduction}",
        {"x": shape},
        lambda x, **out: F.cross_entropy(x, _labels(x), **options, **out),
        lambda dy, y, x, **out: F.cross_entropy_backward(x, _labels(x), dy, **options, **out),
        empty=(),
    )


def norm(
    name: str, shape: Shape, vector: Shape, *, beta: bool = True, empty: Any = (0,), **options: Any
) -> Function:
    """Make the case of a normalization of examples by themselves."""
    function, backward = getattr(F, name), getattr(F, f"{name}_backward")
    where = {key: value for key, value in options.items() if key != "eps"}
    return Function(
        f"{name} {shape} {where}",
        {"x": shape, "gamma": vector, **({"beta": vector} if beta else {})},
        lambda *operands, **out: function(*operands, **options, **out),
        lambda dy, found, x, gamma, *_, **out: backward(dy, x, found[1], gamma, **where, **out),
        outs=NORM[: 2 + beta],
        empty=empty,
    )


def batch_norm(shape: Shape, axis: int, fused: bool = False, given: bool = False) -> Function:
    """Make the case of statistics of the batch, or of `given` ones, with ReLU and residual."""
    vector = (shape[axis],)
    options: dict[str, Any] = {"axis": axis}
    names = ("mean", "var", "gamma", "beta") if given else ("gamma", "beta")
    shapes = {"x": shape, **dict.fromkeys(names, vector)}
    if fused:
        shapes["residual"] = shape

    def forward(x: Any, *vectors: Any, **out: Any) -> Any:
        if fused:
            *vectors, out["residual"] = vectors  # type: ignore[assignment]
            out["activation"] = "relu"
        return (F.batch_norm_infer if given else F.batch_norm_train)(x, *vectors, **options, **out)

    def backward(dy: Any, found: Any, x: Any, *vectors: Any, **outs: Any) -> Any:
        outs["y"] = first(found) if fused else None
        if given:
            return F.batch_norm_infer_backward(dy, x, *vectors[:3], **options, **outs)
        return F.batch_norm_backward(dy, x, found[1], vectors[0], **options, **outs)

    return Function(
        f"batch_norm {'infer' if given else 'train'}{', fused' * fused} {shape} {axis}",
        shapes, forward, backward, outs=NORM, in_memory_order=True,
        empty=tuple(d for d in range(len(shape)) if d != axis % len(shape)),
    )  # fmt: skip


def weighted(shape: Shape, axis: int = 1) -> Function:
    positions = tuple(n for d, n in enumerate(shape) if d != axis)
    return Function(
        f"weighted_batch_norm {shape}",
        {"x": shape, "weights": positions, "gamma": (shape[axis],), "beta": (shape[axis],)},
        lambda *operands, **out: F.weighted_batch_norm_train(*operands, axis=axis, **out),
        lambda dy, found, x, w, gamma, beta, **outs: F.weighted_batch_norm_backward(
            dy, x, w, found[1], gamma, axis=axis, **outs
        ),
        outs=NORM, in_memory_order=True,
    )  # fmt: skip


def convolution(
    shape: Shape, weight: Shape, name: str = "conv2d", relu: Any = None, **options: Any
) -> Function:
    function, backward = getattr(F, name), getattr(F, f"{name}_backward")
    more = {"activation": relu} if relu else {}
    filters = weight[0] if name == "conv2d" else weight[1] * options.get("groups", 1)
    return Function(
        f"{name} {shape} {weight} {options}",
        {"x": shape, "weight": weight, "bias": (filters,)},
        lambda *operands, **out: function(*operands, **options, **more, **out),
        lambda dy, y, x, weight, _, **outs: backward(dy, x, weight, **options, **outs),
        outs=CONVOLUTION,
    )


def pooling(name: str, shape: Shape, **options: Any) -> Function:
    function, backward = getattr(F, name), getattr(F, f"{name}_backward")
    return Function(
        f"{name} {shape} {options}",
        {"x": shape},
        lambda x: function(x, **options),
        # With the index of maxima.
        lambda dy, found, x: backward(dy, *arrays(found)[1:], x.shape, **options),
        gives_y=False, outs=(), in_memory_order=True,
    )  # fmt: skip


def local_response(shape: Shape, **options: Any) -> Function:
    return Function(
        f"local_response_norm {shape} {options}",
        {"x": shape},
        lambda x, **out: F.local_response_norm(x, **options, **out),
        lambda dy, y, x, **out: F.local_response_norm_backward(dy, x, **options, **out),
        empty=(0, *range(2, len(shape))),
    )


def recurrent(kind: str, T: int = 5, N: int = 4, H: int = 3) -> Function:
    gates = KINDS[kind].gates * H
    shapes = {"projected": (T, N, gates), "weight": (gates, H), "bias": (gates,)}
    return Function(
        f"recurrent {kind} {(T, N, H)}",
        {**shapes, "initial": (KINDS[kind].states, N, H)},
        lambda *operands: F.recurrent(*operands, kind=kind).states,
        lambda dy, states, projected, weight, bias, initial: F.recurrent_backward(
            dy, weight, F.recurrent(projected, weight, bias, initial, kind=kind), bias, kind=kind
        ),
        gives_y=False, outs=(), empty=(),
    )  # fmt: skip


OF_OUTPUT = ("relu", "sigmoid", "tanh")
ROWWISE = ("softmax", "log_softmax")
FUNCTIONS = [
    *(activation(name) for name in OF_OUTPUT),
    *(activation(name, of="x") for name in ("gelu", "silu", "leaky_relu")),
    activation("gelu", of="x", approximate="tanh"),
    *(activation(name, axis=axis) for name in ROWWISE for axis in (1, -1)),
    *map(cross_entropy, ("mean", "sum", "none")),
    # Short runs, long ones, several pieces, and planes.
    norm("layer_norm", (300, 64), (64,)),
    norm("layer_norm", (2, 5, 3, 4), (5, 3, 4), axis=1),
    norm("layer_norm", (3, 7, 600), (7, 600), axis=-2),
    norm("layer_norm", (4, 2, 40), (40,), empty=(0, 1)),
    norm("rms_norm", (40, 768), (768,), beta=False, eps=1e-6),
    norm("rms_norm", (2, 5, 3, 4), (4,), beta=False, eps=1e-6, empty=(0, 1, 2)),
    norm("group_norm", (5, 8, 9, 11), (8,), groups=4, empty=(0, 2, 3)),
    norm("group_norm", (30, 600), (600,), groups=2),
    norm("group_norm", (2, 3, 4, 4), (4,), groups=2, axis=-1),
    norm("group_norm", (5, 9, 11, 8), (8,), groups=2, axis=-1, empty=(0, 1, 2)),
    norm("instance_norm", (4, 3, 20, 30), (3,), empty=(0, 2, 3)),
    norm("instance_norm", (4, 5, 3), (3,), axis=2),
    *(
        batch_norm(shape, axis, fused, given)
        for shape, axis in (((20, 6), 1), ((3, 4, 5), 1), ((2, 4, 3, 5), 1), ((5, 3, 4), -1))
        for fused in (False, True)
        for given in (False, True)
    ),
    *map(weighted, ((20, 6), (3, 4, 5))),
    convolution((2, 4, 4, 4), (6, 2, 3, 3), groups=2, padding=1),
    convolution((2, 4, 4, 4), (4, 4, 3, 3), padding=1),
    convolution((2, 5, 4, 4), (6, 4, 3, 3), axis=-1, stride=(1, 2)),
    convolution((2, 5, 4, 4), (4, 1, 3, 3), axis=-1, groups=4, padding=1),
    convolution((2, 3, 5, 4), (4, 3, 1, 1)),
    convolution((2, 4, 3, 4), (4, 3, 2, 2), "conv_transpose2d", groups=2),
    convolution((2, 4, 3, 4), (4, 2, 3, 3), "conv_transpose2d", axis=-1, stride=2),
    *(
        pooling(name, shape, size=3, stride=2, padding=1, axis=axis)
        for name in ("max_pool2d", "avg_pool2d")
        for shape, axis in (((2, 3, 6, 4), 1), ((2, 6, 4, 3), -1))
    ),
    pooling("max_pool2d", (2, 3, 6, 8), size=2),
    pooling("avg_pool2d", (2, 3, 6, 8), size=2),
    *(
        pooling(name, (2, 3, 6, 4), axis=axis)
        for name in ("global_avg_pool2d", "global_max_pool2d")
        for axis in (1, -1)
    ),
    local_response((3, 8, 5, 6), size=5, alpha=0.5),
    local_response((3, 8, 5, 6), size=3, alpha=2, over="positions", beta=0.6),
    *map(recurrent, KINDS),
]  # fmt: skip

# Larger ones, in several blocks: for results that must not depend on how work is divided.
LARGE = [
    *(
        activation(name, shape)
        for name in (*OF_OUTPUT, *ROWWISE)
        for shape in ((5, 3), (300_001, 1), (3000, 101), (40, 9000), (1, 200_000))
    ),
    *(
        batch_norm(shape, axis, fused, given)
        for shape, axis in (
            ((2, 3), 1), ((65, 7), 1), ((3, 5, 4, 4), 1), ((5000, 33), 1), ((300_000, 1), 1),
            ((9, 16, 30, 31), 1), ((3, 70_001), 0), ((100, 2000), 1), ((40, 100, 7, 7), 1),
            ((130, 2, 60, 61), 1), ((2, 2, 200_001), 1), ((900, 40, 5, 5), 1),
        )
        for fused in (False, True)
        for given in (False, True)
    ),
    *map(weighted, ((5000, 33), (40, 9, 800))),
    norm("layer_norm", (12_000, 64), (64,)),
    norm("layer_norm", (1600, 768), (768,)),
    norm("rms_norm", (1600, 768), (768,), beta=False),
    norm("group_norm", (200, 8, 9, 11), (8,), groups=4),
    norm("group_norm", (1200, 600), (600,), groups=2),
    norm("group_norm", (200, 9, 11, 8), (8,), groups=2, axis=-1),
    norm("instance_norm", (160, 3, 40, 50), (3,)),
    *(
        convolution(
            (21, 8, size, size) if axis == 1 else (21, size, size, 8),
            (16, 8 // groups, kernel, kernel), groups=groups, stride=stride, axis=axis,
        )
        for axis in (1, -1)
        for groups, kernel, stride, size in (
            (1, 3, 1, 24), (8, 3, 1, 9), (2, 2, 2, 8), (1, 1, 1, 9),
        )
    ),
    convolution((21, 16, 22, 22), (16, 8, 3, 3), "conv_transpose2d"),
    convolution((21, 22, 22, 16), (16, 8, 3, 3), "conv_transpose2d", axis=-1),
    *(
        pooling(name, (3, 5, 11, 7), axis=axis, **options)
        for name in ("max_pool2d", "avg_pool2d")
        for axis in (1, -1)
        for options in ({"size": 2}, {"size": 3, "stride": 2, "padding": 1},
                        {"size": 3, "stride": 1})
    ),
    local_response((3, 8, 40, 41), size=5, alpha=0.5),
    *(recurrent(kind, 5, 64, 96) for kind in KINDS),
]  # fmt: skip
