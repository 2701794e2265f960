"""Reverse-mode differentiation on a tape that is a plain list.

`with Tape() as tape:` records each operation in the order it runs, which is already a topological
order: walking the list backwards needs neither a sort nor recursion, and each node is dropped as
soon as it has been used, so memory falls as the walk goes on.

A result holds its tape, and the tape names a result by its position in the list: there is no cycle,
so that a tape that nobody walks is freed as soon as nobody holds one of its results.
"""

from __future__ import annotations

import collections
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import as_array, function, switch
from ..errors import ArgumentError, DeviceError, DTypeError, ShapeError, TapeError
from ..functional import checks
from .op import Context, Op
from .ops._common import FLOATS, compute
from .ops.arithmetic import Add, Divide, Exp, Log, Multiply, Power, Subtract
from .ops.index import Index
from .ops.matmul import MatMul
from .ops.reductions import Max, Mean, Sum
from .ops.shapes import Reshape, To, Transpose

__all__ = ["Parameter", "Tape", "Tensor", "apply"]


Axis = int | tuple[int, ...] | None


class _Local(threading.local):
    tape: Tape | None = None


_local = _Local()


class Tensor:
    """An array that a tape can follow.

    Parameters
    ----------
    data : array_like of float
        A float32 or float64 array is used as it is, without a copy; lists become float32.
    requires_grad : bool, default False
        Whether `backward` should fill `grad`.

    Attributes
    ----------
    data : ndarray
    grad : ndarray or None
        Sum of all gradients since the last `zero_grad`.
    requires_grad : bool
    """

    __slots__ = (
        "__weakref__", "_buffer", "_logits", "_of_sigmoid", "_position", "_tape", "data", "grad",
        "requires_grad",
    )  # fmt: skip
    # Makes `array * tensor` call Tensor.__rmul__ instead of looping over the array.
    __array_ufunc__ = None

    def __init__(self, data: Any, *, requires_grad: bool = False) -> None:
        usual = type(data) is np.ndarray and data.dtype in FLOATS
        self.data: np.ndarray = data if usual else _held(data)
        self.grad: np.ndarray | None = None
        self.requires_grad = requires_grad is not False and switch(requires_grad, "requires_grad")
        # What recorded this tensor, if anything, and where on it.
        self._tape: Tape | None = None
        self._position: Position | None = None
        # An optimizer's slice of its flat gradient array, where it has adopted this tensor.
        self._buffer: np.ndarray | None = None
        # The input of the softmax that made this tensor, for losses that are stable through it.
        self._logits: Tensor | None = None
        self._of_sigmoid = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.data.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the elements."""
        return self.data.dtype

    def __len__(self) -> int:
        if self.data.ndim == 0:
            raise ShapeError("a 0-dimensional Tensor has no length: use item()")
        return len(self.data)

    def __repr__(self) -> str:
        data = backend.host(self.data)
        text = np.array2string(data, separator=", ", prefix="Tensor(", threshold=20)
        device = "" if data is self.data else ", device='cuda'"
        return f"Tensor({text}{device}{', requires_grad=True' if self.requires_grad else ''})"

    def __bool__(self) -> bool:
        raise DTypeError("the truth of a Tensor is not defined: compare its .data instead")

    def __float__(self) -> float:
        return self.item()

    def __format__(self, spec: str) -> str:
        """Format the one element as a number, as in ``f"{loss:.3f}"``."""
        return format(self.item(), spec) if spec else str(self)

    @property
    def device(self) -> str:
        """Where the data is: "cpu" or "cuda"."""
        return backend.device_of(self.data)

    def to(self, device: str) -> Tensor:
        """Return this Tensor on a device: itself, or a copy that gradients flow back from.

        `device` is "cpu" or "cuda". A DeviceError says what is missing where it cannot be used.
        """
        if self.device == backend.require(device):
            return self
        return apply(To, self, device=device)

    def numpy(self) -> np.ndarray:
        """Return the data as a NumPy array: the same memory, or a copy from the device."""
        return backend.host(self.data)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the data, for ``np.asarray`` and whoever calls it: pandas, matplotlib, ..."""
        data = self.numpy()
        if self.requires_grad and _local.tape is not None:
            raise TapeError(
                "NumPy was given a Tensor that a tape follows, and its result would have no "
                "gradient: use nbbn.ops, or pass .data where no gradient is to flow"
            )
        return np.array(data, dtype, copy=copy)

    def item(self) -> float:
        """Return the value of a Tensor of one element; a ShapeError for any other."""
        if self.data.size != 1:
            raise ShapeError(f"item() needs a Tensor of one element, got shape {self.shape}")
        return float(self.data.reshape(()))

    def detach(self) -> Tensor:
        """Return a Tensor of the same data that no tape follows."""
        return Tensor(self.data)

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    def backward(self, grad: np.ndarray | None = None) -> None:
        """Run `Tape.backward` on the tape that recorded this tensor, or raise a TapeError."""
        if self._tape is None:
            raise TapeError(
                "no tape recorded this Tensor: compute it inside `with nbbn.Tape():` from "
                "tensors that require gradients"
            )
        self._tape.backward(self, grad)

    def __add__(self, other: Any) -> Tensor:
        return _combined(Add, self, other)

    def __radd__(self, other: Any) -> Tensor:
        return _combined(Add, other, self)

    def __sub__(self, other: Any) -> Tensor:
        return _combined(Subtract, self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return _combined(Subtract, other, self)

    def __mul__(self, other: Any) -> Tensor:
        return _combined(Multiply, self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return _combined(Multiply, other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return _combined(Divide, self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return _combined(Divide, other, self)

    def __neg__(self) -> Tensor:
        return _combined(Subtract, 0, self)

    def __pow__(self, exponent: float) -> Tensor:
        return apply(Power, self, p=exponent)

    def __matmul__(self, other: Any) -> Tensor:
        return _combined(MatMul, self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return _combined(MatMul, other, self)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, index: Any) -> Tensor:
        return apply(Index, self, index=index)

    def sum(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        """Sum over all axes, or the given ones."""
        return apply(Sum, self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        """Mean over all axes, or the given ones."""
        return apply(Mean, self, axis=axis, keepdims=keepdims)

    def max(self, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
        """Maximum over all axes, or the given ones; tied maxima share the gradient equally."""
        return apply(Max, self, axis=axis, keepdims=keepdims)

    def exp(self) -> Tensor:
        """Exponential of every element."""
        return apply(Exp, self)

    def log(self) -> Tensor:
        """Natural logarithm of every element."""
        return apply(Log, self)

    def reshape(self, *shape: Any) -> Tensor:
        """Give the same elements, in C order, another shape; one length may be -1."""
        target = (
            tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        )
        return apply(Reshape, self, shape=target)

    def transpose(self, *axes: int) -> Tensor:
        """Permute the axes, or reverse them all."""
        return apply(Transpose, self, axes=axes or None)

    @property
    def T(self) -> Tensor:  # noqa: N802 - NumPy's name
        """All axes reversed."""
        return self.transpose()

    @staticmethod
    def _apply(op: type[Op], *inputs: Any, **attributes: Any) -> Tensor:
        """Run `apply`, for rules of operations, which are a floor below."""
        return apply(op, *inputs, **attributes)

    def _accumulate(self, gradient: np.ndarray) -> None:
        # The gradient may be another tensor's, or a view of it: never keep it, never add to it.
        total = self._buffer
        if total is None:
            total = backend.empty(self.data.shape, self.data.dtype, backend.device_of(self.data))
        if self.grad is not None:
            backend.run(np.add, self.grad, gradient, total)
        elif gradient is not total:
            backend.run(np.copyto, total, gradient)
        self.grad = total


def _held(data: Any) -> np.ndarray:
    """Return the array that a Tensor of `data` holds, or say why there is none."""
    if isinstance(data, Tensor):
        raise DTypeError("data is a Tensor already: use it directly, or pass its .data")
    if isinstance(data, np.ma.MaskedArray | np.matrix):
        raise DTypeError(
            f"a Tensor takes a plain numpy.ndarray, got {type(data).__name__}: convert it with "
            "numpy.asarray, or .filled(value) where it has a mask"
        )
    if not isinstance(data, np.ndarray | np.floating) and not backend.is_array(data):
        data = _from_lists(data)
    if not backend.is_array(data):
        data = np.asarray(data)
    if not data.dtype.isnative:
        data = data.astype(data.dtype.newbyteorder("="))
    if data.dtype not in FLOATS:
        raise DTypeError(
            f"a Tensor holds float32 or float64, got {data.dtype}: convert it with "
            ".astype(numpy.float32); labels and indices stay plain arrays"
        )
    return data  # type: ignore[no-any-return]


def _from_lists(data: Any) -> np.ndarray:
    """Make an array, of float32 where it holds real numbers, of nested lists or a number."""
    try:
        array = as_array(data, "data")
        with np.errstate(over="raise"):
            return array.astype(np.float32) if array.dtype.kind in "biuf" else array
    except FloatingPointError:
        raise ArgumentError(
            "data holds numbers beyond float32: pass a numpy.ndarray of float64"
        ) from None


class Parameter(Tensor):
    """A Tensor that a model learns: it requires gradients.

    Parameters
    ----------
    data : array_like of float
        As for `Tensor`.
    """

    __slots__ = ()

    def __init__(self, data: Any) -> None:
        super().__init__(data, requires_grad=True)


class Position(int):
    """Where on its own tape a node finds an input: the number of the node that made it."""

    __slots__ = ()


class Elsewhere(Tensor):
    """Stands for a result of another tape, which a node must not hold: tapes may use each other's.

    Its gradient goes to that tensor while somebody holds it; nobody could read it later.
    """

    __slots__ = ("original",)

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.data, requires_grad=tensor.requires_grad)
        self.original = weakref.ref(tensor)

    def _accumulate(self, gradient: np.ndarray) -> None:
        tensor = self.original()
        if tensor is not None:
            tensor._accumulate(gradient)


class Node(NamedTuple):
    """One recorded operation.

    An input that the same tape made is a `Position`, any other is what the operation was given. The
    output is the array, not the tensor, which holds the tape; `backward_graph` gets tensors.
    """

    op: type[Op]
    ctx: Any
    inputs: tuple[Any, ...]
    output: Any


class Tape:
    """Records operations on tensors that require gradients, in this thread, while entered.

    Examples
    --------
    >>> w = nbbn.Parameter([3.0])
    >>> with nbbn.Tape() as tape:
    ...     loss = (w * w).sum()
    >>> tape.backward(loss)
    >>> w.grad
    array([6.], dtype=float32)
    """

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        self._outer: Tape | None = None
        self._entered = False
        self._consumed = False

    def __enter__(self) -> Tape:
        if self._entered or self._consumed:
            raise TapeError("a Tape records once: create a new one for every step")
        self._entered = True
        self._outer, _local.tape = _local.tape, self
        return self

    def __exit__(self, *exc: object) -> None:
        if _local.tape is self:
            _local.tape = self._outer
        else:
            # Tapes inside this one may be left later, by an ExitStack or a generator.
            inner = _local.tape
            while inner is not None and inner._outer is not self:
                inner = inner._outer
            if inner is not None:
                inner._outer = self._outer
        self._outer = None

    def __len__(self) -> int:
        return len(self._nodes)

    def nodes(self) -> list[Node]:
        """Return what was recorded so far, in order, as a new list."""
        return list(self._nodes)

    def record(self, op: type[Op], ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Add an operation; on a consumed tape its output only remembers the tape, for errors."""
        output.requires_grad = True
        output._tape = self
        if not self._consumed:
            output._position = Position(len(self._nodes))
            # No tensor that holds a tape.
            held = [x if getattr(x, "_tape", None) is None else self._held(x) for x in inputs]
            self._nodes.append(Node(op, ctx, tuple(held), output.data))

    def _held(self, x: Tensor) -> Tensor | Position:
        if x._tape is self and x.requires_grad and x._position is not None:
            return x._position
        return x if x._tape is None or x._tape._consumed else Elsewhere(x)

    def holds(self, x: Tensor) -> bool:
        """Whether `x` is a result on this tape that can still be differentiated."""
        return x._tape is self and not self._consumed

    def result(self, position: Position) -> Tensor:
        """Return a recorded result as a tensor, another one than its operation returned."""
        tensor = Tensor(0.0, requires_grad=True)
        # As it is: an array that was released is no longer one.
        tensor.data = self._nodes[position].output
        tensor._tape, tensor._position = self, position
        return tensor

    def release(self, x: Tensor, instead: Any) -> None:
        """Let go of the array of a result, whose operation and users keep what they need."""
        assert x._position is not None
        x.data = instead
        self._nodes[x._position] = self._nodes[x._position]._replace(output=instead)

    def backward(
        self,
        loss: Tensor,
        grad: np.ndarray | None = None,
        *,
        ready: Callable[[Tensor], None] | None = None,
    ) -> None:
        """Add the gradients of `loss` to the `grad` of every leaf it depends on.

        The tape is consumed: its nodes and the arrays they saved are freed on the way.

        Parameters
        ----------
        loss : Tensor
            A result recorded on this tape.
        grad : ndarray, shape of `loss`, optional
            Gradient to start from; may be left out where `loss` has one element.
        ready : callable, optional
            Is called with each leaf as soon as its gradient is complete.

        Raises
        ------
        TapeError
            The tape was consumed before, or did not record `loss`.
        ShapeError
            `grad` is missing for a loss of several elements, or has another shape.
        DTypeError, DeviceError
            `grad` is no array of floating numbers, or lies where the loss does not; `ready` cannot
            be called.
        """
        if ready is not None:
            function(ready, "ready")
        if self._consumed:
            raise TapeError("this tape was consumed by an earlier backward: record the step again")
        if not isinstance(loss, Tensor) or loss._tape is not self:
            raise TapeError(
                "this tape did not record the loss: compute it inside `with nbbn.Tape():` from "
                "tensors that require gradients"
            )
        grads: dict[int, np.ndarray] = {loss._position: _seed(loss, grad)}  # type: ignore[dict-item]
        self._consumed = True
        fresh: set[int] = set()
        nodes = self._nodes
        awaited = None if ready is None else _Awaited(nodes, ready)
        while nodes:
            op, ctx, inputs, output = nodes.pop()
            position = len(nodes)
            dy = grads.pop(position, None)
            ctx.owns_dy = position in fresh
            fresh.discard(position)
            # The output's array is of no more use, unless to somebody outside.
            del output
            if awaited is not None:
                awaited.pass_on(inputs)
            if dy is None:
                continue
            ctx.needs = tuple(map(_needed, inputs))
            ctx.buffers = _buffers(inputs, dy.dtype)
            for x, gradient in self._wanted(op, ctx.needs, inputs, op.backward(ctx, dy)):
                if isinstance(x, Tensor):
                    x._accumulate(gradient)
                elif x in grads:
                    grads[x] = compute(np.add, grads[x], gradient)
                    fresh.add(x)
                else:
                    grads[x] = gradient
                    if op.fresh:
                        fresh.add(x)
        if awaited is not None:
            awaited.pass_on(())

    def _wanted(
        self, op: type[Op], needs: tuple[bool, ...], inputs: tuple[Any, ...], gradients: Any
    ) -> Iterator[tuple[Tensor | Position, np.ndarray]]:
        """Yield what an operation's backward returned for each input that wants it, checked."""
        if not isinstance(gradients, tuple):
            gradients = (gradients,)
        if len(gradients) != len(inputs):
            raise TapeError(
                f"{op.__name__}.backward must return a gradient, or None, for each of its "
                f"{len(inputs)} inputs, got {len(gradients)}"
            )
        for x, needed, gradient in zip(inputs, needs, gradients, strict=True):
            if not needed or gradient is None:
                continue
            data = x.data if isinstance(x, Tensor) else self._nodes[x].output
            if not backend.is_array(gradient) or gradient.shape != data.shape:
                raise ShapeError(
                    f"{op.__name__}.backward must return a gradient of shape {data.shape}, "
                    f"got {getattr(gradient, 'shape', type(gradient).__name__)}"
                )
            if gradient.dtype != data.dtype:
                gradient = backend.contiguous(gradient, data.dtype)
            yield x, gradient


class _Awaited:
    """Leaves whose gradients are not complete yet, by the number of operations that use them."""

    def __init__(self, nodes: list[Node], ready: Callable[[Tensor], None]) -> None:
        self._ready = ready
        self._uses = collections.Counter(id(x) for node in nodes for x in _leaves(node.inputs))
        self._last: list[Tensor] = []

    def pass_on(self, inputs: tuple[Any, ...]) -> None:
        """Tell of leaves that only the operation before used; `inputs` are those of the next."""
        for x in self._last:
            self._uses[id(x)] -= 1
            if not self._uses[id(x)]:
                self._ready(x)
        self._last = _leaves(inputs)


def _leaves(inputs: tuple[Any, ...]) -> list[Tensor]:
    return [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]


def _needed(x: Any) -> bool:
    return isinstance(x, Position) or (isinstance(x, Tensor) and x.requires_grad)


def _seed(loss: Tensor, grad: np.ndarray | None) -> np.ndarray:
    """Return the gradient that backward starts from: the given one, checked, or 1."""
    if grad is None:
        if loss.data.size != 1:
            raise ShapeError(
                f"backward needs a loss of one element, got shape {loss.shape}: reduce it with "
                ".sum() or .mean(), or pass grad"
            )
        return backend.ones(loss.data.shape, loss.data.dtype, loss.device)
    if not backend.is_array(grad) or grad.dtype.kind != "f":
        found = grad.dtype if backend.is_array(grad) else type(grad).__name__
        raise DTypeError(f"grad must be a numpy.ndarray of floating numbers, got {found}")
    if grad.shape != loss.data.shape:
        raise ShapeError(f"grad must have shape {loss.shape}, got {grad.shape}")
    if backend.device_of(grad) != loss.device:
        raise DeviceError(f"grad is on {backend.device_of(grad)}, the loss on {loss.device}")
    return backend.contiguous(grad, loss.data.dtype)


def _buffers(inputs: tuple[Any, ...], dtype: np.dtype[Any]) -> tuple[np.ndarray | None, ...]:
    """Where gradients of `dtype` may be written: the buffers of leaves without a gradient."""
    found: list[np.ndarray | None] = []
    for x in inputs:
        buffer = x._buffer if isinstance(x, Tensor) and x.grad is None else None
        # A parameter that is an input twice has one buffer for two gradients.
        if buffer is not None and (buffer.dtype != dtype or any(buffer is b for b in found)):
            buffer = None
        found.append(buffer)
    return tuple(found)


def apply(op: type[Op], *inputs: Any, **attributes: Any) -> Tensor:
    """Run `op` on tensors, arrays and numbers; record it where a gradient may be wanted.

    Parameters
    ----------
    op : type of Op
    *inputs : Tensor, ndarray, number or None
    **attributes
        Passed to ``op.forward`` as they are.

    Returns
    -------
    Tensor
    """
    return _applied(op, Context(), inputs, attributes)


def _combined(op: type[Op], a: Any, b: Any) -> Tensor:
    """As `apply`, for an operator of two operands: small arrays feel every step of Python's."""
    ctx = Context()
    x = a.data if isinstance(a, Tensor) else a
    y = b.data if isinstance(b, Tensor) else b
    output = Tensor(op.forward(ctx, x, y))
    tape = _local.tape
    if tape is not None and (_needed(a) or _needed(b)):
        tape.record(op, ctx, (a, b), output)
    return output


def apply_with_stats(op: type[Op], *inputs: Any, **attributes: Any) -> tuple[Tensor, Any]:
    """As `apply`, and return the statistics too that the forward left in its context."""
    ctx = Context()
    output = _applied(op, ctx, inputs, attributes)
    return output, ctx.stats  # type: ignore[attr-defined]


def _applied(
    op: type[Op], ctx: Context, inputs: tuple[Any, ...], attributes: dict[str, Any]
) -> Tensor:
    try:
        recordable = _may_be_recorded(op)  # type: ignore[arg-type]
    except (AttributeError, TypeError, ValueError):  # not a class, or not even hashable
        raise DTypeError(f"op must be a subclass of nbbn.Op, got {op!r:.80}") from None
    if not recordable:
        backend.not_recordable(f"the operation {op.__name__} is not marked recordable")
    arrays, wanted = [], False
    for x in inputs:
        if isinstance(x, Tensor):
            wanted = wanted or x.requires_grad
            x = x.data
        arrays.append(x)
    output = Tensor(op.forward(ctx, *arrays, **attributes))
    tape = _local.tape
    if tape is not None and wanted:
        tape.record(op, ctx, inputs, output)
    return output


@functools.lru_cache(maxsize=256)
def _may_be_recorded(op: type[Op]) -> bool:
    """Whether each class that defines what an operation computes is marked, or nbbn's."""
    if not issubclass(op, Op):
        raise TypeError(op)
    homes = [
        next((k for k in op.__mro__ if name in vars(k)), Op)
        for name in ("forward", "backward", "backward_graph")
    ]
    return bool(op.recordable) and all(
        k.__module__.startswith("nbbn.") or vars(k).get("recordable") is True for k in homes
    )


def recording_tape() -> Tape | None:
    """Return the tape that records in this thread, if any."""
    return _local.tape


class SparseTensor(Tensor):
    """Sparse rows on their way into the first Dense layer: no other operation takes them.

    Parameters
    ----------
    rows : CSR
    """

    # In place of the properties of these names.
    __slots__ = ("device", "dtype", "ndim", "rows", "shape", "size")

    device: str
    dtype: np.dtype[Any]
    ndim: int
    shape: tuple[int, ...]
    size: int

    def __init__(self, rows: backend.CSR) -> None:
        self.rows, self.shape, self.dtype = rows, rows.shape, rows.dtype
        self.ndim, self.size, self.device = 2, len(rows) * rows.features, "cpu"
        self.grad, self.requires_grad = None, False
        self._tape = self._position = self._buffer = self._logits = None
        self._of_sigmoid = False

    @property
    def data(self) -> np.ndarray:  # type: ignore[override]
        """Nothing: no array holds the zeros."""
        raise DTypeError(
            "only Dense takes a sparse batch: begin the model with one, or pass x.toarray()"
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"SparseTensor({self.rows!r})"


def tensor_of(value: Any, name: str) -> Tensor:
    """Return a Tensor itself, or an array of floating numbers as one."""
    if not isinstance(value, Tensor):
        checks.floating(value, name)
    return as_tensor(value)


def as_tensor(value: Any) -> Tensor:
    """Return `value` as a Tensor: itself, or an array or a CSR matrix wrapped without a copy."""
    if isinstance(value, Tensor):
        return value
    if backend.is_array(value):
        return Tensor(value)
    rows = backend.as_csr(value)
    if rows is not None:
        return SparseTensor(rows)
    raise ArgumentError(f"x must be a Tensor or a numpy.ndarray, got {type(value).__name__}")
