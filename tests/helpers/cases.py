"""One table of cases for every differentiable operation: adding an operation is one line here.

`test_ops` runs each case against the reference, finite differences, PyTorch, both float types,
every memory layout and operands that must be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from nbbn import backend, losses, ops
from nbbn.autograd.tensor import Parameter, Tensor, apply
from nbbn.errors import ArgumentError, DTypeError, NbbnError, ShapeError
from tests.helpers import reference
from tests.helpers.reference import wide

Shape = tuple[int, ...]


# -------------------------------------------------------------------------------- domains


def normal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.normal(size=shape)


def positive(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    return rng.uniform(0.5, 2, shape)


def nonzero(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Away from 0, where a division explodes and relu has its kink."""
    return rng.uniform(0.2, 2, shape) * rng.choice([-1, 1], shape)


def distinct(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Without ties, where a maximum has its kink."""
    return rng.permuted(np.linspace(-1, 1, int(np.prod(shape)))).reshape(shape)


# ---------------------------------------------------------------------------------- cases


class Case(NamedTuple):
    name: str
    # On tensors and arrays; one argument per shape.
    function: Callable[..., Tensor]
    # The same on arrays, in extended precision.
    reference: Callable[..., np.ndarray]
    shapes: tuple[Shape, ...]
    # The same on torch tensors, with the torch module first.
    torch: Callable[..., Any]
    domain: Callable[[np.random.Generator, Shape], np.ndarray] = normal
    # Shapes that must raise ShapeError.
    misfits: tuple[tuple[Shape, ...], ...] = ()

    def arrays(self, rng: np.random.Generator, dtype: Any = np.float64) -> list[np.ndarray]:
        return [self.domain(rng, shape).astype(dtype) for shape in self.shapes]


def same(name: str, function: Callable[..., Any], *shapes: Shape, **rest: Any) -> Case:
    """Make a case of an expression that tensors, NumPy arrays and torch tensors all understand."""
    return Case(
        name,
        function,
        lambda *arrays: function(*map(wide, arrays)),
        shapes,
        lambda torch, *tensors: function(*tensors),
        **rest,
    )


def probability(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Away from 0 and 1, which a step of finite differences must not pass."""
    return rng.uniform(0.05, 0.95, shape)


LABELS = np.array([2, 0, 3, 3, 1])
GRID = np.array([[2, 0, 3], [3, 1, 2]])
CLASS_WEIGHT = np.array([0.5, 2.0, 0.0, 1.3])
MASK = np.array([True, False, True, True])
PLACES = np.array([[0, 3, 3, 1, 2], [1, 1, 1, 0, 3], [2, 0, 3, 3, 3]])
MEAN, VAR = np.array([0.3, -0.2, 1.0]), np.array([0.5, 2.0, 1.3])


def _weights(shape: Shape) -> np.ndarray:
    """Draw what ops.dropout multiplies by for p = 0.4 and seed 5."""
    key = int(np.random.default_rng(5).integers(2**64, dtype=np.uint64))
    return reference.dropout_kept(shape, 0.4, key) / wide(0.6)


def _torch_dropout(torch: Any, x: Any) -> Any:
    weights = _weights(tuple(x.shape))
    return x * torch.as_tensor(weights.astype(np.float64), dtype=x.dtype)


def _torch_batch_norm_train(torch: Any, x: Any, gamma: Any = None, beta: Any = None) -> Any:
    return torch.nn.functional.batch_norm(x, None, None, gamma, beta, training=True)


def _torch_batch_norm_infer(torch: Any, x: Any, gamma: Any = None, beta: Any = None) -> Any:
    mean, var = (torch.as_tensor(array, dtype=x.dtype) for array in (MEAN, VAR))
    return torch.nn.functional.batch_norm(x, mean, var, gamma, beta)


def _batch_norm_train(*operands: Any, **options: Any) -> Tensor:
    return ops.batch_norm_train(*operands, **options)[0]


def _reference_batch_norm_train(x: Any, gamma: Any = None, beta: Any = None, **options: Any) -> Any:
    return reference.batch_norm_train(x, gamma, beta, **options)[0]


# Weights for x of shape (4, 3, 5), with a position that does not count.
POSITIONS = np.random.default_rng(8).uniform(0.2, 2, (4, 5))
POSITIONS[1, 2] = 0
EXAMPLES = np.array([1.0, 0.0, 2.0, 0.5, 1.0, 3.0, 1.0, 0.0])


def _torch_weighted(torch: Any, x: Any, weights: np.ndarray, gamma: Any, beta: Any) -> Any:
    """Channels on axis 1, weights broadcastable to x."""
    w, axes = torch.as_tensor(weights, dtype=x.dtype), (0, *range(2, x.ndim))
    total = w.sum()
    mean = (w * x).sum(axes, keepdim=True) / total
    var = (w * (x - mean) ** 2).sum(axes, keepdim=True) / total
    shape = mean.shape
    return (x - mean) / (var + 1e-5).sqrt() * gamma.reshape(shape) + beta.reshape(shape)


def _torch_in_place(torch: Any, x: Any, gamma: Any, beta: Any, *given: np.ndarray) -> Any:
    mean, var = (torch.as_tensor(a, dtype=x.dtype) for a in given) if given else (None, None)
    y = torch.nn.functional.batch_norm(x, mean, var, gamma.abs() + 1e-5, beta, not given)
    return torch.nn.functional.leaky_relu(y, 0.1)


def _beside(x: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Put the arrays among options where x is."""
    device = x.device if isinstance(x, Tensor) else "cpu"
    return {
        name: backend.to(value, device) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def _for_torch(torch: Any, x: Any, options: dict[str, Any]) -> dict[str, Any]:
    return {
        name: torch.as_tensor(value, dtype=x.dtype) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def _for_reference(options: dict[str, Any]) -> dict[str, Any]:
    names = {"ignore_index": "ignored", "label_smoothing": "smoothing"}
    return {names.get(name, name): value for name, value in options.items()}


def _cross_entropy_case(
    name: str, shape: Shape, labels: np.ndarray, how: str, **options: Any
) -> Case:
    def with_torch(torch: Any, x: Any) -> Any:
        found = _for_torch(torch, x, options)
        return torch.nn.functional.cross_entropy(x, torch.as_tensor(labels), reduction=how, **found)

    def with_reference(x: Any) -> Any:
        given = _for_reference(options)
        if labels.ndim:
            return reference.cross_entropy(x, labels, how, **given)
        return reference.cross_entropy(x[None], labels[None], "sum", **given)

    return Case(
        f"ops.cross_entropy, {name}, {how}",
        lambda x: ops.cross_entropy(x, reduction=how, **_beside(x, {"labels": labels, **options})),
        with_reference,
        (shape,),
        with_torch,
    )


def _reference_binary(x: Any, t: Any, weight: Any = 1, pos_weight: Any = 1) -> np.ndarray:
    x, t = wide(x), wide(t)
    softplus = np.logaddexp(0, x)
    return weight * (pos_weight * t * (softplus - x) + (1 - t) * softplus)


def _torch_response(torch: Any, x: Any, size: int, alpha: float, power: float, k: float) -> Any:
    """Within channels (N, C, H, W), of which PyTorch has the average."""
    before, after = size // 2, (size - 1) // 2
    padded = torch.nn.functional.pad(x * x, (before, after, before, after))
    mean = torch.nn.functional.avg_pool2d(padded, size, 1)
    return x / (k + alpha * mean) ** power


def _reduced(loss: Any, how: str) -> Any:
    return loss if how == "none" else getattr(loss, how)()


LENGTHS = np.array([3, 1, 4])


def _recurrent(*operands: Any, kind: str, lengths: Any = None, reverse: bool = False) -> Tensor:
    """What `reference.recurrent` returns."""
    states = ops.recurrent(*operands, kind=kind, lengths=lengths, reverse=reverse)
    y = states[0, :-1] if reverse else states[0, 1:]
    last = states[1:, 0] if reverse else states[1:, -1]
    return ops.concatenate([y, last]) if kind == "lstm" else y


def _torch_recurrent(
    torch: Any, projected: Any, weight: Any, bias: Any = None, initial: Any = None, *,
    kind: str, lengths: Any = None, reverse: bool = False,
) -> Any:  # fmt: skip
    """PyTorch's layer, whose input weight is the identity, on one sequence after the other."""
    gates, H = weight.shape
    kinds = {"lstm": torch.lstm, "gru": torch.gru, "tanh": torch.rnn_tanh, "relu": torch.rnn_relu}
    zero = projected.new_zeros(gates)
    weights = [torch.eye(gates, dtype=weight.dtype), weight, zero, zero if bias is None else bias]
    found = []
    for n in range(projected.shape[1]):
        length = projected.shape[0] if lengths is None else lengths[n]
        x = projected[:length, n : n + 1]
        start = projected.new_zeros(2, 1, H) if initial is None else initial[:, n : n + 1]
        state = tuple(start.split(1)) if kind == "lstm" else start[:1]
        x = x.flip(0) if reverse else x
        y, *last = kinds[kind](x, state, weights, True, 1, 0.0, False, False, False)
        # Beyond its end a sequence keeps its state.
        rest = projected.shape[0] - length
        if reverse:
            y = torch.cat([y.flip(0), start[:1].expand(rest, 1, H)])
        else:
            y = torch.cat([y, y[-1:].expand(rest, 1, H)])
        found.append(torch.cat([y, last[-1]]) if kind == "lstm" else y)
    return torch.cat(found, 1)


GROUPS = ((0, 2), (2, 4), (4, 6), (6, 9))


def _in_groups(x: Any, *operands: Any, residual: Any = None, **options: Any) -> np.ndarray:
    """Nine examples in virtual batches of at least two."""
    parts = []
    for a, b in GROUPS:
        own = None if residual is None else residual[a:b]
        parts.append(reference.batch_norm_train(x[a:b], *operands, residual=own, **options)[0])
    return np.concatenate(parts)


def _torch_in_groups(torch: Any, x: Any, *operands: Any) -> Any:
    return torch.cat([_torch_batch_norm_train(torch, x[a:b], *operands) for a, b in GROUPS])


def _convolution_case(
    name: str, function: str, shapes: tuple[Shape, ...], misfits: Any = (), **options: Any
) -> Case:
    """Make a case of a convolution; the numbers of `options` are pairs, as the reference's."""
    pads = options.get("padding", (0, 0))
    last = options.get("axis", 1) == -1
    given = {name: value for name, value in options.items() if name not in ("padding", "axis")}
    given["pads"] = tuple((p, p) for p in pads)
    relu = given.pop("activation", None) is not None
    if "output_padding" in given:
        given["more"] = given.pop("output_padding")
    own = {name: value for name, value in options.items() if name not in ("axis", "activation")}
    truth = "convolution" if function == "conv2d" else "transposed_convolution"

    def with_reference(*operands: Any) -> Any:
        y = getattr(reference, truth)(*operands, last=last, **given)
        return np.maximum(y, 0) if relu else y

    def with_torch(torch: Any, x: Any, *rest: Any) -> Any:
        x = x.movedim(-1, 1) if last else x
        y = getattr(torch.nn.functional, function)(x, *rest, **own)
        y = y.relu() if relu else y
        return y.movedim(1, -1) if last else y

    return Case(
        f"ops.{function}, {name}",
        lambda *operands: getattr(ops, function)(*operands, **options),
        with_reference,
        shapes,
        with_torch,
        misfits=misfits,
    )


def _pooling_case(
    name: str, label: str, shape: Shape, domain: Any = normal, *, size: Any, axis: int = 1,
    **options: Any,
) -> Case:  # fmt: skip
    def with_torch(torch: Any, x: Any) -> Any:
        function = getattr(torch.nn.functional, name)
        return function(x.movedim(axis, 1), size, **options).movedim(1, axis)

    return Case(
        f"ops.{name}, {label}",
        lambda x: getattr(ops, name)(x, size, axis=axis, **options),
        lambda x: reference.pooled(x, size, mean=name == "avg_pool2d", axis=axis, **options),
        (shape,),
        with_torch,
        domain,
        misfits=(((2, 3, 4),), ((2, 3, 0, 4),), ((1, 0, 0, 0),)),
    )


CASES = [
    # ---- arithmetic
    same("a + b", lambda a, b: a + b, (3, 4), (3, 4), misfits=(((3, 4), (3, 5)),)),
    same("a + b, broadcast", lambda a, b: a + b, (3, 1, 4), (5, 1)),
    same("a + b, scalar tensor", lambda a, b: a + b, (), (2, 3)),
    same("a + number", lambda a: a + 1.5, (3, 4)),
    same("number + a", lambda a: 2 + a, (3, 4)),
    same("a - b", lambda a, b: a - b, (3, 4), (3, 4), misfits=(((3, 4), (4, 3)),)),
    same("a - b, broadcast", lambda a, b: a - b, (4,), (3, 4)),
    same("number - a", lambda a: 1 - a, (3, 4)),
    same("-a", lambda a: -a, (3, 4)),
    same("a * b", lambda a, b: a * b, (3, 4), (3, 4), misfits=(((2,), (3,)),)),
    same("a * b, broadcast", lambda a, b: a * b, (3, 4), (2, 1, 4)),
    same("a * a", lambda a: a * a, (3, 4)),
    same("number * a", lambda a: 2.5 * a, (3, 4)),
    same("a / b", lambda a, b: a / b, (3, 4), (3, 4), domain=nonzero, misfits=(((2,), (3,)),)),
    same("a / b, broadcast", lambda a, b: a / b, (3, 1), (4,), domain=nonzero),
    same("a / number", lambda a: a / 4, (3, 4)),
    same("number / a", lambda a: 1 / a, (3, 4), domain=nonzero),
    same("a ** 2", lambda a: a**2, (3, 4)),
    same("a ** 3, at negative a", lambda a: a**3, (3, 4), domain=nonzero),
    same("a ** 0.5", lambda a: a**0.5, (3, 4), domain=positive),
    same("a ** -1.5", lambda a: a**-1.5, (3, 4), domain=positive),
    Case("exp", lambda x: x.exp(), lambda x: np.exp(wide(x)), ((3, 4),), lambda torch, x: x.exp()),
    Case("log", lambda x: x.log(), lambda x: np.log(wide(x)), ((3, 4),), lambda torch, x: x.log(),
         positive),
    same("a @ b", lambda a, b: a @ b, (3, 4), (4, 5),
         misfits=(((3, 4), (3, 4)), ((4,), (4, 5)), ((3, 4), (4,)), ((3, 4), ()))),
    same("a @ b, batches", lambda a, b: a @ b, (2, 1, 3, 4), (6, 4, 5),
         misfits=(((2, 3, 4), (3, 4, 5)),)),
    # ---- reductions and shapes
    same("sum", lambda x: x.sum(), (3, 4)),
    same("sum, axis", lambda x: x.sum(axis=1), (3, 4)),
    same("sum, axes", lambda x: x.sum(axis=(0, -1)), (3, 4, 2)),
    same("sum, keepdims", lambda x: x.sum(axis=1, keepdims=True), (3, 4, 2)),
    same("mean", lambda x: x.mean(), (3, 4), misfits=(((0, 4),),)),
    same("mean, axes", lambda x: x.mean(axis=(0, 2)), (3, 4, 2)),
    same("mean, keepdims", lambda x: x.mean(axis=0, keepdims=True), (3, 4)),
    Case("max", lambda x: x.max(), lambda x: np.max(wide(x)), ((3, 4),), lambda torch, x: x.amax(),
         distinct, misfits=(((0, 4),),)),
    Case("max, axes", lambda x: x.max(axis=(0, 2), keepdims=True),
         lambda x: np.max(wide(x), axis=(0, 2), keepdims=True), ((3, 4, 2),),
         lambda torch, x: x.amax((0, 2), keepdim=True), distinct),
    Case("max, all values tied", lambda x: (x * 0).max(axis=1) + x[:, 0], lambda x: wide(x)[:, 0],
         ((3, 4),), lambda torch, x: x[:, 0]),
    same("reshape", lambda x: x.reshape(2, 6), (3, 4), misfits=(((5, 5),),)),
    same("reshape, -1 in a tuple", lambda x: x.reshape((3, -1)), (3, 2, 2)),
    same("transpose", lambda x: x.T, (3, 4)),
    Case("To", lambda x: apply(ops.To, x, device="cpu"), wide, ((2, 3),),
         lambda torch, x: x.to("cpu")),
    Case("transpose, axes", lambda x: x.transpose(2, 0, -2), lambda x: wide(x).transpose(2, 0, 1),
         ((3, 4, 2),), lambda torch, x: x.permute(2, 0, 1), misfits=(((3, 4),),)),
    same("index, number", lambda x: x[1], (3, 4), misfits=(((1, 4),), ((),))),
    same("index, slices", lambda x: x[1:, ::2], (3, 4)),
    same("index, new axis", lambda x: x[:, None, 1], (3, 4)),
    same("index, repeated rows", lambda x: x[[0, 2, 2, 0]], (3, 4)),
    same("index, pairs", lambda x: x[np.arange(5), LABELS], (5, 4)),
    same("index, mask", lambda x: x[:, MASK], (3, 4)),
    # ---- several tensors in one
    Case("ops.concatenate", lambda a, b, c: ops.concatenate([a, b, c], 1),
         lambda *parts: np.concatenate([*map(wide, parts)], 1), ((2, 3), (2, 1), (2, 0)),
         lambda torch, *parts: torch.cat(parts, 1),
         misfits=(((2, 3), (3, 3), (2, 0)), ((2, 3), (2,), (2, 0)), ((), (), ()))),
    Case("ops.stack", lambda a, b: ops.stack([a, b], -1),
         lambda a, b: np.stack([wide(a), wide(b)], -1), ((2, 3), (2, 3)),
         lambda torch, a, b: torch.stack([a, b], -1), misfits=(((2, 3), (2, 1)),)),
    Case("ops.split", lambda x: ops.split(x, 3, 1)[1] * ops.split(x, [1, 4], -1)[1][:, 1:],
         lambda x: wide(x)[:, 2:4] ** 2, ((2, 6),), lambda torch, x: x.tensor_split(3, 1)[1] ** 2,
         misfits=(((2, 7),), ((6,),))),
    Case("ops.pad", lambda x: ops.pad(x, ((1, 0), (0, 2)), 0.5),
         lambda x: np.pad(wide(x), ((1, 0), (0, 2)), constant_values=0.5), ((2, 3),),
         lambda torch, x: torch.nn.functional.pad(x, (0, 2, 1, 0), value=0.5),
         misfits=(((2, 3, 4),),)),
    Case("ops.where", lambda a, b: ops.where(MASK, a, b), lambda a, b: np.where(MASK, wide(a), b),
         ((3, 4), (3, 1)), lambda torch, a, b: torch.where(torch.as_tensor(MASK), a, b),
         misfits=(((3, 4), (2, 4)), ((3, 5), (3, 1)))),
    Case("ops.where, a number", lambda a: ops.where(MASK, 2.5, a),
         lambda a: np.where(MASK, 2.5, wide(a)), ((3, 4),),
         lambda torch, a: torch.where(torch.as_tensor(MASK), 2.5, a)),
    *(
        Case(f"ops.{name}", getattr(ops, name), lambda a, b, name=name: getattr(np, name)(
            wide(a), wide(b)), ((3, 4), (3, 1)),
            lambda torch, a, b, name=name: getattr(torch, name)(a, b),
            misfits=(((3, 4), (3, 2)),))
        for name in ("maximum", "minimum")
    ),
    Case("maximum, equal", lambda a: ops.maximum(a, a * 1), wide, ((3, 4),),
         lambda torch, a: torch.maximum(a, a * 1)),
    Case("ops.gather", lambda x: ops.gather(x, PLACES, 1),
         lambda x: np.take_along_axis(wide(x), PLACES, 1), ((3, 4),),
         lambda torch, x: x.gather(1, torch.as_tensor(PLACES)),
         misfits=(((3, 4, 1),), ((2, 4),), ((3, 2),))),
    Case("ops.scatter_add", lambda x: ops.scatter_add(x, PLACES, 4),
         lambda x: (wide(x)[..., None] * (PLACES[..., None] == np.arange(4))).sum(1), ((3, 5),),
         lambda torch, x: torch.zeros(3, 4, dtype=x.dtype).scatter_add(
             1, torch.as_tensor(PLACES), x), misfits=(((3, 4),), ((3,),))),
    *(
        Case(f"ops.einsum, {how}", lambda a, b, how=how: ops.einsum(how, a, b),
             lambda a, b, how=how: np.einsum(how, wide(a), wide(b)), shapes,
             lambda torch, a, b, how=how: torch.einsum(how, a, b), misfits=misfits)
        for how, shapes, misfits in (
            ("ij,jk->ik", ((3, 4), (4, 2)), (((3, 4), (3, 2)), ((3,), (4, 2)))),
            ("bhqd,bkhd->bqhk", ((2, 3, 4, 5), (2, 6, 3, 5)), ()),
            ("ij,ik->kj", ((3, 4), (3, 2)), ()),
            ("ijk,jl->lj", ((2, 3, 4), (3, 5)), ()),
            ("i,j->ij", ((3,), (4,)), ()),
            ("ij,ij->", ((3, 4), (3, 4)), ()),
        )
    ),
    # ---- activations
    Case("ops.relu", ops.relu, reference.relu, ((3, 4),), lambda torch, x: torch.relu(x), nonzero),
    Case("ops.sigmoid", ops.sigmoid, reference.sigmoid, ((3, 4),), lambda torch, x: x.sigmoid()),
    Case("ops.softplus", ops.softplus, lambda x: np.logaddexp(0, wide(x)), ((3, 4),),
         lambda torch, x: torch.nn.functional.softplus(x, threshold=1e6)),
    Case("ops.tanh", ops.tanh, reference.tanh, ((3, 4),), lambda torch, x: x.tanh()),
    Case("ops.gelu", ops.gelu, reference.gelu, ((3, 4),),
         lambda torch, x: torch.nn.functional.gelu(x)),
    Case("ops.gelu, tanh", lambda x: ops.gelu(x, approximate="tanh"), reference.gelu_tanh,
         ((3, 4),), lambda torch, x: torch.nn.functional.gelu(x, approximate="tanh")),
    Case("ops.silu", ops.silu, reference.silu, ((3, 4),),
         lambda torch, x: torch.nn.functional.silu(x)),
    Case("ops.leaky_relu", lambda x: ops.leaky_relu(x, slope=0.2),
         lambda x: reference.leaky_relu(x, 0.2), ((3, 4),),
         lambda torch, x: torch.nn.functional.leaky_relu(x, 0.2), nonzero),
    Case("ops.softmax", ops.softmax, reference.softmax, ((3, 4),), lambda torch, x: x.softmax(-1)),
    Case("ops.softmax, axis", lambda x: ops.softmax(x, axis=1),
         lambda x: reference.softmax(x, axis=1), ((3, 4, 2),), lambda torch, x: x.softmax(1),
         misfits=(((3,),),)),
    Case("ops.log_softmax", ops.log_softmax, reference.log_softmax, ((3, 4),),
         lambda torch, x: x.log_softmax(-1)),
    Case("ops.log_softmax, axis", lambda x: ops.log_softmax(x, axis=0),
         lambda x: reference.log_softmax(x, axis=0), ((3, 4),), lambda torch, x: x.log_softmax(0)),
    # 3 + 0 x: one number has no slope, and nothing is compared with nothing.
    *(
        Case(f"{name} of one number", lambda x, name=name: getattr(ops, name)(x) + 3 * x,
             lambda x, value=value: value + 3 * wide(x), ((),),
             lambda torch, x, name=name: getattr(torch, name)(x, 0) + 3 * x)
        for name, value in (("softmax", 1), ("log_softmax", 0))
    ),
    Case("ops.huber", lambda x: ops.huber(x, 0.7), lambda x: reference.huber(wide(x), 0.7),
         ((3, 4),),
         lambda torch, x: torch.nn.functional.huber_loss(x, 0 * x, reduction="none", delta=0.7)),
    Case("ops.dropout, all", lambda x: ops.dropout(x, 1, np.random.default_rng(5)),
         lambda x: 0 * wide(x), ((3, 4),), lambda torch, x: torch.nn.functional.dropout(x, 1.0)),
    Case("ops.dropout", lambda x: ops.dropout(x, 0.4, np.random.default_rng(5)),
         lambda x: wide(x) * _weights(x.shape), ((3, 4),), _torch_dropout),
    # ---- pooling
    *(
        _pooling_case("max_pool2d", f"{shape}, {options}", shape, distinct, **options)
        for shape, options in (
            ((2, 3, 4, 6), {"size": 2}),
            ((2, 5, 7, 3), {"size": 2, "ceil_mode": True, "axis": -1}),
            ((2, 2, 6, 5), {"size": 3, "stride": 2, "padding": 1}),
            ((1, 6, 5, 2), {"size": (3, 2), "stride": 1, "padding": 1, "axis": -1}),
            ((1, 2, 7, 8), {"size": (2, 3), "stride": (3, 1), "dilation": (3, 2)}),
            ((1, 2, 6, 7), {"size": 3, "stride": 2, "padding": (1, 0), "ceil_mode": True}),
        )
    ),
    *(
        _pooling_case("avg_pool2d", f"{shape}, {options}", shape, **options)
        for shape, options in (
            ((2, 3, 4, 6), {"size": 2}),
            ((2, 5, 7, 3), {"size": 2, "ceil_mode": True, "axis": -1}),
            ((2, 2, 6, 5), {"size": 3, "stride": 2, "padding": 1}),
            ((2, 2, 6, 5), {"size": 3, "stride": 2, "padding": 1, "count_include_pad": False}),
            ((1, 6, 5, 2), {"size": (3, 2), "stride": 1, "padding": 1, "axis": -1}),
            ((1, 2, 6, 8), {"size": 3, "stride": 2, "padding": 1, "ceil_mode": True}),
        )
    ),
    *(
        Case(f"ops.{name}, {options}",
             lambda x, name=name, options=options: getattr(ops, name)(x, **options),
             lambda x, reduce=reduce, axes=axes, keepdims=keepdims: reduce(
                 wide(x), axis=axes, keepdims=keepdims),
             ((2, 3, 4, 5),),
             lambda torch, x, theirs=theirs, axes=axes, keepdims=keepdims: getattr(x, theirs)(
                 dim=axes, keepdim=keepdims),
             distinct, misfits=(((2, 3, 4),), ((2, 3, 0, 5),), ((2, 0, 4, 0),)))
        for name, reduce, theirs in (("global_avg_pool2d", np.mean, "mean"),
                                     ("global_max_pool2d", np.max, "amax"))
        for options, axes, keepdims in (
            ({}, (2, 3), False), ({"axis": -1, "keepdims": True}, (1, 2), True))
    ),
    # ---- layers and losses
    Case("ops.linear", ops.linear, lambda x, w, b: wide(x) @ wide(w).T + wide(b),
         ((5, 3), (4, 3), (4,)), lambda torch, x, w, b: torch.nn.functional.linear(x, w, b),
         misfits=(((5, 4), (4, 3), (4,)), ((), (4, 3), (4,)), ((5, 3), (3,), (4,)),
                  ((5, 3), (4, 3), (3,)), ((5, 3), (4, 3), (1, 4)))),
    Case("ops.linear, no bias", ops.linear, lambda x, w: wide(x) @ wide(w).T, ((5, 3), (4, 3)),
         lambda torch, x, w: torch.nn.functional.linear(x, w), misfits=(((2, 5, 4), (4, 3)),)),
    *(
        Case(f"ops.linear, rank {len(shape)}", ops.linear,
             lambda x, w, b: wide(x) @ wide(w).T + wide(b), (shape, (4, 3), (4,)),
             lambda torch, x, w, b: torch.nn.functional.linear(x, w, b))
        for shape in ((3,), (2, 5, 3), (2, 1, 2, 1, 3))
    ),
    _convolution_case(
        "a window of its own", "conv2d", ((2, 2, 7, 6), (3, 2, 3, 2), (3,)),
        (((2, 2, 7), (3, 2, 3, 2), (3,)), ((2, 3, 7, 6), (3, 2, 3, 2), (3,)),
         ((2, 2, 2, 6), (3, 2, 9, 2), (3,)), ((2, 2, 7, 6), (3, 2, 3, 2), (2,)),
         ((2, 2, 7, 6), (3, 2, 3), (3,)), ((2, 2, 7, 6), (3, 2, 0, 2), (3,)),
         ((2, 2, 0, 6), (3, 2, 1, 2), (3,))),
        stride=(2, 1), padding=(1, 2), dilation=(2, 3)),
    _convolution_case("groups", "conv2d", ((2, 4, 4, 5), (6, 2, 2, 2)),
                      (((2, 3, 4, 5), (6, 2, 2, 2)), ((2, 6, 4, 5), (5, 3, 2, 2))), groups=2),
    _convolution_case("depthwise", "conv2d", ((2, 3, 5, 4), (6, 1, 3, 3), (6,)),
                      groups=3, padding=(1, 1)),
    _convolution_case("groups and relu", "conv2d", ((2, 4, 4, 5), (6, 2, 2, 2), (6,)),
                      groups=2, activation="relu"),
    _convolution_case("depthwise and relu", "conv2d", ((2, 3, 5, 4), (6, 1, 3, 3), (6,)),
                      groups=3, activation="relu"),
    _convolution_case("channels last and relu", "conv2d", ((2, 5, 4, 2), (4, 2, 3, 2)),
                      axis=-1, activation="relu"),
    _convolution_case("one pixel", "conv2d", ((2, 3, 2, 3), (4, 3, 1, 1), (4,))),
    _convolution_case("channels last", "conv2d", ((2, 5, 4, 4), (4, 2, 3, 2), (4,)),
                      axis=-1, groups=2, stride=(1, 2), padding=(1, 0)),
    _convolution_case(
        "a window of its own", "conv_transpose2d", ((2, 3, 3, 4), (3, 2, 3, 2), (2,)),
        (((2, 3, 3), (3, 2, 3, 2), (2,)), ((2, 4, 3, 4), (3, 2, 3, 2), (2,)),
         ((2, 3, 3, 4), (3, 2, 3, 2), (3,)), ((2, 3, 1, 1), (3, 2, 1, 1), (2,))),
        stride=(2, 3), padding=(1, 1), output_padding=(1, 2), dilation=(2, 1)),
    _convolution_case("groups", "conv_transpose2d", ((2, 4, 3, 3), (4, 3, 2, 2)), groups=2),
    _convolution_case("channels last", "conv_transpose2d", ((2, 3, 3, 4), (4, 1, 3, 3), (2,)),
                      axis=-1, groups=2, stride=(2, 2), padding=(1, 1), output_padding=(1, 0)),
    Case("ops.batch_norm_train, rows", _batch_norm_train, _reference_batch_norm_train,
         ((8, 3), (3,), (3,)), _torch_batch_norm_train,
         misfits=(((8, 3), (4,), (3,)), ((8, 3), (3,), (1, 3)), ((1, 3), (3,), (3,)),
                  ((3,), (3,), (3,)), ((8, 0), (0,), (0,)), ((2, 3, 2, 2, 2, 2), (3,), (3,)))),
    Case("ops.batch_norm_train, planes", _batch_norm_train, _reference_batch_norm_train,
         ((4, 3, 2, 3), (3,), (3,)), _torch_batch_norm_train),
    Case("ops.batch_norm_train, no affine, last axis", lambda x: _batch_norm_train(x, axis=-1),
         lambda x: _reference_batch_norm_train(x, axis=-1), ((4, 2, 3),),
         lambda torch, x: _torch_batch_norm_train(torch, x.movedim(-1, 1)).movedim(1, -1)),
    Case("ops.batch_norm_train, relu and residual",
         lambda x, g, b, r: _batch_norm_train(x, g, b, r, activation="relu"),
         lambda x, g, b, r: _reference_batch_norm_train(x, g, b, activation="relu", residual=r),
         ((4, 3, 5), (3,), (3,), (4, 3, 5)),
         lambda torch, x, g, b, r: torch.relu(_torch_batch_norm_train(torch, x, g, b) + r),
         misfits=(((4, 3, 5), (3,), (3,), (4, 3, 1)),)),
    Case("ops.batch_norm_train, residual", lambda x, r: _batch_norm_train(x, residual=r),
         lambda x, r: _reference_batch_norm_train(x, residual=r), ((8, 3), (8, 3)),
         lambda torch, x, r: _torch_batch_norm_train(torch, x) + r),
    Case("ops.batch_norm_infer, rows", lambda x, g, b: ops.batch_norm_infer(x, MEAN, VAR, g, b),
         lambda x, g, b: reference.batch_norm_infer(x, MEAN, VAR, g, b), ((8, 3), (3,), (3,)),
         _torch_batch_norm_infer,
         misfits=(((8, 4), (4,), (4,)), ((8, 3), (4,), (3,)), ((8, 3), (3,), (2,)))),
    Case("ops.batch_norm_infer, planes, relu and residual",
         lambda x, *rest: ops.batch_norm_infer(x, MEAN, VAR, *rest, activation="relu"),
         lambda x, g, b, r: reference.batch_norm_infer(
             x, MEAN, VAR, g, b, activation="relu", residual=r),
         ((4, 3, 5), (3,), (3,), (4, 3, 5)),
         lambda torch, x, g, b, r: torch.relu(_torch_batch_norm_infer(torch, x, g, b) + r)),
    # ---- through time: 4 steps of 3 sequences, 2 hidden units
    *(
        Case(f"ops.recurrent, {kind}, {name}",
             lambda *a, options=options, kind=kind: _recurrent(*a, kind=kind, **options),
             lambda *a, options=options, kind=kind: reference.recurrent(*a, kind=kind, **options),
             shapes[:count],
             lambda torch, *a, options=options, kind=kind: _torch_recurrent(
                 torch, *a, kind=kind, **options),
             misfits=misfits if name == "all operands" else ())
        for kind, gates, states in (("lstm", 8, 2), ("gru", 6, 1), ("tanh", 2, 1), ("relu", 2, 1))
        for shapes in [((4, 3, gates), (gates, 2), (gates,), (states, 3, 2))]
        for misfits in [(((4, 3), *shapes[1:]), ((4, 3, gates + 1), *shapes[1:]),
                         (shapes[0], (gates, 3), *shapes[2:]), (*shapes[:2], (9,), shapes[3]),
                         (*shapes[:3], (states, 3, 1)))]
        for name, count, options in (
            ("two operands", 2, {}),
            ("all operands", 4, {}),
            ("reverse, lengths", 4, {"reverse": True, "lengths": LENGTHS}),
            ("lengths", 4, {"lengths": LENGTHS}),
        )
    ),
    # ---- variants of batch normalization
    Case("variants.weighted_batch_norm, rows",
         lambda x, g, b: ops.weighted_batch_norm(x, EXAMPLES, g, b)[0],
         lambda x, g, b: reference.weighted_batch_norm(x, EXAMPLES, g, b), ((8, 3), (3,), (3,)),
         lambda torch, x, g, b: _torch_weighted(torch, x, EXAMPLES[:, None], g, b),
         misfits=(((7, 3), (3,), (3,)), ((8, 3), (4,), (3,)), ((8, 3), (3,), (2,)))),
    Case("variants.weighted_batch_norm, planes, relu and residual",
         lambda x, *rest: ops.weighted_batch_norm(x, POSITIONS, *rest, activation="relu")[0],
         lambda x, g, b, r: reference.weighted_batch_norm(
             x, POSITIONS, g, b, activation="relu", residual=r),
         ((4, 3, 5), (3,), (3,), (4, 3, 5)),
         lambda torch, x, g, b, r: torch.relu(
             _torch_weighted(torch, x, POSITIONS[:, None], g, b) + r),
         misfits=(((4, 3, 5), (3,), (3,), (4, 3, 1)),)),
    Case("variants.ghost_batch_norm, rows",
         lambda x, g, b: ops.ghost_batch_norm(x, g, b, size=2)[0], _in_groups,
         ((9, 3), (3,), (3,)), _torch_in_groups,
         misfits=(((9, 3), (4,), (3,)), ((3,), (3,), (3,)))),
    Case("variants.ghost_batch_norm, planes, relu and residual",
         lambda x, r: ops.ghost_batch_norm(x, residual=r, size=2, activation="relu")[0],
         lambda x, r: _in_groups(x, residual=r, activation="relu"), ((9, 3, 4), (9, 3, 4)),
         lambda torch, x, r: torch.relu(_torch_in_groups(torch, x) + r)),
    Case("variants.in_place_batch_norm",
         lambda x, g, b: ops.in_place_batch_norm(x, g, b, slope=0.1)[0],
         lambda x, g, b: reference.in_place_batch_norm(x, g, b, 0.1), ((6, 3, 2), (3,), (3,)),
         _torch_in_place, nonzero,
         misfits=(((6, 3, 2), (4,), (3,)), ((6, 3, 2), (3,), (1, 3)), ((1, 3), (3,), (3,)))),
    Case("variants.in_place_batch_norm, given statistics",
         lambda x, g, b: ops.in_place_batch_norm(x, g, b, MEAN, VAR, slope=0.1)[0],
         lambda x, g, b: reference.in_place_batch_norm(x, g, b, 0.1, MEAN, VAR),
         ((6, 3, 2), (3,), (3,)),
         lambda torch, x, g, b: _torch_in_place(torch, x, g, b, MEAN, VAR), nonzero),
    # ---- normalization of examples by themselves
    Case("ops.layer_norm", ops.layer_norm, reference.layer_norm, ((5, 7), (7,), (7,)),
         lambda torch, x, g, b: torch.nn.functional.layer_norm(x, (7,), g, b),
         misfits=(((5, 7), (6,), (7,)), ((5, 7), (7,), (1, 7)), ((5, 0), (0,), (0,)),
                  ((), (1,), (1,)))),
    Case("ops.layer_norm, several axes", lambda x, g, b: ops.layer_norm(x, g, b, axis=1),
         lambda x, g, b: reference.layer_norm(x, g, b, axis=1), ((4, 3, 5), (3, 5), (3, 5)),
         lambda torch, x, g, b: torch.nn.functional.layer_norm(x, (3, 5), g, b),
         misfits=(((4, 3, 5), (5, 3), (3, 5)), ((4, 3, 5), (3, 5), (15,)))),
    Case("ops.layer_norm, no affine", lambda x: ops.layer_norm(x, eps=0.1),
         lambda x: reference.layer_norm(x, eps=0.1), ((2, 3, 5),),
         lambda torch, x: torch.nn.functional.layer_norm(x, (5,), eps=0.1)),
    Case("ops.layer_norm, shift alone", lambda x, b: ops.layer_norm(x, None, b),
         lambda x, b: reference.layer_norm(x, None, b), ((3, 300), (300,)),
         lambda torch, x, b: torch.nn.functional.layer_norm(x, (300,), None, b)),
    Case("ops.rms_norm", lambda x, g: ops.rms_norm(x, g, eps=1e-6),
         lambda x, g: reference.rms_norm(x, g, eps=1e-6), ((5, 7), (7,)),
         lambda torch, x, g: torch.nn.functional.rms_norm(x, (7,), g, 1e-6),
         misfits=(((5, 7), (6,)), ((5, 7), (1, 7)), ((5, 0), (0,)))),
    Case("ops.rms_norm, default eps, several axes", lambda x: ops.rms_norm(x, axis=-2),
         lambda x: reference.rms_norm(x, axis=-2), ((2, 3, 100),),
         lambda torch, x: torch.nn.functional.rms_norm(x, (3, 100))),
    Case("ops.group_norm", lambda x, g, b: ops.group_norm(x, g, b, groups=2),
         lambda x, g, b: reference.group_norm(x, g, b, groups=2), ((3, 6, 4, 5), (6,), (6,)),
         lambda torch, x, g, b: torch.nn.functional.group_norm(x, 2, g, b),
         misfits=(((3, 5, 4), (5,), (5,)), ((3, 6, 4), (3,), (6,)), ((3, 6, 4), (6,), (2,)),
                  ((6,), (6,), (6,)), ((3, 0, 4), (0,), (0,)), ((1, 2), (2,), (2,)))),
    Case("ops.group_norm, rows, no affine", lambda x: ops.group_norm(x, groups=3),
         lambda x: reference.group_norm(x, groups=3), ((4, 12),),
         lambda torch, x: torch.nn.functional.group_norm(x, 3)),
    Case("ops.group_norm, rows", lambda x, g, b: ops.group_norm(x, g, b, groups=2),
         lambda x, g, b: reference.group_norm(x, g, b, groups=2), ((20, 8), (8,), (8,)),
         lambda torch, x, g, b: torch.nn.functional.group_norm(x, 2, g, b)),
    Case("ops.group_norm, channels last",
         lambda x, g, b: ops.group_norm(x, g, b, groups=2, axis=-1),
         lambda x, g, b: reference.group_norm(x, g, b, groups=2, axis=-1),
         ((3, 4, 5, 6), (6,), (6,)),
         lambda torch, x, g, b: torch.nn.functional.group_norm(
             x.movedim(-1, 1), 2, g, b).movedim(1, -1)),
    Case("ops.instance_norm", ops.instance_norm, reference.instance_norm,
         ((3, 2, 4, 5), (2,), (2,)),
         lambda torch, x, g, b: torch.nn.functional.instance_norm(x, weight=g, bias=b),
         misfits=(((3, 2), (2,), (2,)), ((3, 2, 1), (2,), (2,)), ((3, 2, 4), (3,), (2,)))),
    Case("ops.instance_norm, channels first of all", lambda x: ops.instance_norm(x, axis=0),
         lambda x: reference.instance_norm(x, axis=0), ((2, 3, 300),),
         lambda torch, x: torch.nn.functional.instance_norm(x.movedim(0, 1)).movedim(0, 1)),
    *(
        Case(f"ops.local_response_norm, {name}",
             lambda x, options=options: ops.local_response_norm(x, **options),
             lambda x, options=options: reference.local_response_norm(x, **options),
             (shape,), function, misfits=(((5, 4),), ((2, 0, 0),)))
        for name, shape, options, function in (
            ("PyTorch's", (2, 7, 3), {"size": 5, "alpha": 0.5},
             lambda torch, x: torch.nn.functional.local_response_norm(x, 5, 0.5)),
            ("even size", (2, 6, 3, 2), {"size": 4, "alpha": 0.5, "beta": 1.1, "k": 0.7},
             lambda torch, x: torch.nn.functional.local_response_norm(x, 4, 0.5, 1.1, 0.7)),
            ("AlexNet's", (2, 7, 3), {"size": 5, "alpha": 0.1, "k": 2, "alpha_of": "sum"},
             lambda torch, x: torch.nn.functional.local_response_norm(x, 5, 0.5, 0.75, 2.0)),
            ("channels last, wider than all", (2, 3, 4), {"size": 20, "alpha": 2, "axis": -1},
             lambda torch, x: torch.nn.functional.local_response_norm(
                 x.movedim(-1, 1), 20, 2.0).movedim(1, -1)),
            ("within channels", (2, 3, 4, 5), {"size": 3, "alpha": 2, "over": "positions"},
             lambda torch, x: _torch_response(torch, x, 3, 2.0, 0.75, 1.0)),
            ("within channels, even size, sum", (2, 3, 4, 5),
             {"size": 2, "alpha": 2, "over": "positions", "alpha_of": "sum", "beta": 0.5},
             lambda torch, x: _torch_response(torch, x, 2, 8.0, 0.5, 1.0)),
        )
    ),
    *(
        _cross_entropy_case("", (5, 4), LABELS, how)._replace(
            name=f"ops.cross_entropy, {how}",
            misfits=(((5,),), ((6, 4),), ((5, 0),), ((5, 4, 1),), ((),)))
        for how in ("mean", "sum", "none")
    ),
    *(
        _cross_entropy_case(name, shape, labels, how, **options)
        for name, shape, labels, hows, options in (
            ("class weights", (5, 4), LABELS, "mean sum none", {"weight": CLASS_WEIGHT}),
            ("an ignored class", (5, 4), LABELS, "mean none", {"ignore_index": 3}),
            ("smoothing", (5, 4), LABELS, "mean none", {"label_smoothing": 0.3}),
            ("smoothing of all", (5, 4), LABELS, "sum", {"label_smoothing": 1}),
            ("one row", (4,), np.array(3), "none", {"weight": CLASS_WEIGHT}),
            ("rank 3", (2, 4, 3), GRID, "mean none", {}),
            ("rank 5, all options", (2, 4, 3, 1, 1),
             np.where(GRID == 3, -100, GRID).reshape(2, 3, 1, 1), "mean none",
             {"weight": CLASS_WEIGHT, "ignore_index": -100, "label_smoothing": 0.2}),
        )
        for how in hows.split()
    ),
    *(
        Case(f"cross_entropy of probabilities, {shape}, {sorted(options)}, {how}",
             lambda x, p, how=how, options=options: losses.cross_entropy(
                 x, p, reduction=how, **_beside(x, options)),
             lambda x, p, how=how, options=options: reference.cross_entropy(
                 x, p, how, **_for_reference(options)),
             (shape, shape),
             lambda torch, x, p, how=how, options=options: torch.nn.functional.cross_entropy(
                 x, p, reduction=how, **_for_torch(torch, x, options)),
             probability, misfits=(((5, 4), (5, 3)), ((5, 0), (5, 0))))
        for how, shape, options in (
            ("mean", (5, 4), {}),
            ("none", (2, 4, 3, 1), {"weight": CLASS_WEIGHT, "label_smoothing": 0.2}),
        )
    ),
    *(
        Case(f"losses.{name}, {how}",
             lambda a, b, name=name, how=how, options=options: getattr(losses, name)(
                 a, b, reduction=how, **options),
             lambda a, b, how=how, loss=loss: _reduced(loss(wide(a), wide(b)), how),
             (shape, shape),
             lambda torch, a, b, how=how, name=name, options=options: getattr(
                 torch.nn.functional, f"{name}_loss")(a, b, reduction=how, **options),
             misfits=(((5, 1), (5,)), ((5,), (5, 1)), ((5, 3), (5, 1)), ((5, 3), (3, 5))))
        for how, name, shape, options, loss in (
            ("mean", "mse", (5, 3), {}, lambda a, b: (a - b) ** 2),
            ("none", "mse", (5,), {}, lambda a, b: (a - b) ** 2),
            ("sum", "huber", (5, 3), {"delta": 0.7}, lambda a, b: reference.huber(a - b, 0.7)),
        )
    ),
    *(
        Case(f"losses.binary_cross_entropy, {how}, {sorted(options)}",
             lambda x, t, how=how, options=options: losses.binary_cross_entropy(
                 x, t, reduction=how, **_beside(x, options)),
             lambda x, t, how=how, options=options: _reduced(
                 _reference_binary(x, t, **options), how),
             ((5, 3), (5, 3)),
             lambda torch, x, t, how=how, options=options: (
                 torch.nn.functional.binary_cross_entropy_with_logits(
                     x, t, reduction=how, **_for_torch(torch, x, options))),
             probability,
             misfits=(((5, 1), (5,)), ((5,), (5, 1)), ((5, 3), (5, 1)), ((5, 2), (2, 5))))
        for how, options in (
            ("mean", {}),
            ("none", {"pos_weight": np.array([0.5, 3.0, 1.0])}),
            ("mean", {"weight": np.arange(5.0)[:, None], "pos_weight": np.array(2.5)}),
        )
    ),
    *(
        Case(f"losses.nll, {how}", lambda p, how=how: losses.nll(p, LABELS, reduction=how),
             lambda p, how=how: _reduced(-np.log(wide(p))[np.arange(5), LABELS], how), ((5, 4),),
             lambda torch, p, how=how: torch.nn.functional.nll_loss(
                 p.log(), torch.as_tensor(LABELS), reduction=how),
             positive, misfits=(((5,),), ((6, 4),), ((5, 4, 1),)))
        for how in ("mean", "sum", "none")
    ),
]  # fmt: skip


# ----------------------------------------------------------------- operands that are refused


class Refused(NamedTuple):
    name: str
    call: Callable[[], Any]
    error: type[NbbnError]
    # What the message must name: what came, and what was expected.
    words: tuple[str, ...]


X = Tensor(np.ones((2, 3), np.float32))
FACTOR = np.ones((2, 3), np.complex64)

REFUSED = [
    *(
        Refused(label, call, DTypeError, words)
        for operator, calls in {
            "+": (lambda b: X + b, lambda b: b + X),
            "-": (lambda b: X - b, lambda b: b - X),
            "*": (lambda b: X * b, lambda b: b * X),
            "/": (lambda b: X / b, lambda b: b / X),
            "@": (lambda b: X @ b, lambda b: b @ X),
        }.items()
        for name, other, words in (
            ("text", "abc", ("str",)),
            ("list", [[1.0, 2.0, 3.0]], ("list",)),
            ("None", None, ("NoneType",)),
            ("complex array", FACTOR if operator != "@" else FACTOR.T, ("complex64",)),
        )
        for label, call in (
            (f"a {operator} {name}", lambda f=calls[0], b=other: f(b)),
            (f"{name} {operator} a", lambda f=calls[1], b=other: f(b)),
        )
    ),
    Refused("a ** text", lambda: X ** "2", DTypeError, ("exponent", "str")),
    Refused("a ** array", lambda: X ** np.ones(3), DTypeError, ("exponent", "ndarray")),
    Refused("a ** tensor", lambda: X ** Parameter(2.0), DTypeError, ("exponent", "Parameter")),
    Refused("a ** nan", lambda: X ** float("nan"), ArgumentError, ("exponent", "nan")),
    Refused("sum, axis", lambda: X.sum(axis=2), ShapeError, ("axis 2", "(2, 3)")),
    Refused("sum, axis twice", lambda: X.sum(axis=(0, -2)), ShapeError, ("axis", "(0, -2)")),
    Refused("sum, axis type", lambda: X.sum(axis=1.0), DTypeError, ("axis", "float")),
    Refused("mean, axis", lambda: X.mean(axis=-3), ShapeError, ("axis -3", "(2, 3)")),
    Refused("max, axis", lambda: X.max(axis=5), ShapeError, ("axis 5", "(2, 3)")),
    Refused("reshape, text", lambda: X.reshape("ab"), DTypeError, ("str",)),
    Refused("transpose, twice", lambda: X.transpose(0, 0), ShapeError, ("(0, 0)",)),
    Refused("index, outside", lambda: X[2], ShapeError, ("(2, 3)", "2")),
    Refused("index, too many", lambda: X[0, 0, 0], ShapeError, ("(2, 3)",)),
    Refused("index, text", lambda: X["a"], NbbnError, ("(2, 3)",)),
    Refused("concatenate, axis", lambda: ops.concatenate([X], 2), ShapeError, ("axis 2", "(2, 3)")),
    Refused("concatenate, one tensor", lambda: ops.concatenate(X), DTypeError, ("list", "Tensor")),
    Refused("concatenate, none", lambda: ops.concatenate([]), ArgumentError, ("got none",)),
    Refused("stack, axis", lambda: ops.stack([X, X], 3), ShapeError, ("axis 3", "(2, 3)")),
    Refused("split, parts", lambda: ops.split(X, 2, 1), ShapeError, ("(2, 3)", "2 parts")),
    Refused("split, none", lambda: ops.split(X, 0), ArgumentError, ("sections", "0")),
    Refused("pad, negative", lambda: ops.pad(X, -1), ArgumentError, ("widths", "-1")),
    Refused("pad, value", lambda: ops.pad(X, 1, "a"), DTypeError, ("value", "str")),
    Refused("where, floats", lambda: ops.where(X.data, X, X), DTypeError, ("bool", "float32")),
    Refused("gather, floats", lambda: ops.gather(X, X.data), DTypeError, ("integers", "float32")),
    Refused("gather, rank", lambda: ops.gather(X, LABELS), ShapeError, ("(2, 3)", "(5,)")),
    Refused("scatter_add, shape", lambda: ops.scatter_add(X, np.zeros((2, 1), int), 4), ShapeError,
            ("(2, 3)", "(2, 1)")),
    Refused("einsum, one operand", lambda: ops.einsum("ij->i", X, X), ArgumentError, ("ij->i",)),
    Refused("einsum, twice", lambda: ops.einsum("ii,ij->ij", X, X), ArgumentError, ("ii,ij->ij",)),
    Refused("einsum, new", lambda: ops.einsum("ij,ij->k", X, X), ArgumentError, ("ij,ij->k",)),
    Refused("softmax, axis", lambda: ops.softmax(X, axis=2), ShapeError, ("axis 2", "(2, 3)")),
    Refused("log_softmax, axis", lambda: ops.log_softmax(X, axis=-3), ShapeError, ("axis -3",)),
    Refused("dropout, 1.1", lambda: ops.dropout(X, 1.1, None), ArgumentError, ("dropout", "1.1")),
    Refused("dropout, -0.1", lambda: ops.dropout(X, -0.1, None), ArgumentError, ("-0.1",)),
    Refused("dropout, text", lambda: ops.dropout(X, "a", None), DTypeError, ("p", "str")),
    Refused("dropout, rng", lambda: ops.dropout(X, 0.5, 1), NbbnError, ("Generator", "int")),
    *(
        Refused(f"batch norm, {name}", lambda options=options: ops.batch_norm_train(X, **options),
                error, words)
        for name, options, error, words in (
            ("eps", {"eps": 0}, ArgumentError, ("eps", "> 0", "0")),
            ("eps text", {"eps": "a"}, DTypeError, ("eps", "str")),
            ("axis", {"axis": 2}, ShapeError, ("axis 2", "(2, 3)")),
            ("activation", {"activation": "gelu"}, ArgumentError, ("relu", "gelu")),
        )
    ),
    *(
        Refused(f"{name}, {what}", lambda f=f, options=options: f(X, **options), error, words)
        for name, f in (("layer_norm", ops.layer_norm), ("rms_norm", ops.rms_norm))
        for what, options, error, words in (
            ("axis", {"axis": 2}, ShapeError, ("axis 2", "(2, 3)")),
            ("axis type", {"axis": 1.0}, DTypeError, ("axis", "float")),
            ("eps 0", {"eps": 0}, ArgumentError, ("eps", "> 0", "0")),
            ("eps text", {"eps": "a"}, DTypeError, ("eps", "str")),
        )
    ),
    *(
        Refused(f"group_norm, {what}", lambda options=options: ops.group_norm(X, **options),
                error, words)
        for what, options, error, words in (
            ("groups", {"groups": 2}, ShapeError, ("3 channels", "(2, 3)", "2 groups")),
            ("no groups", {"groups": 0}, ArgumentError, ("groups", "1", "0")),
            ("groups type", {"groups": 1.0}, DTypeError, ("groups", "float")),
            ("axis", {"groups": 1, "axis": -3}, ShapeError, ("axis -3", "(2, 3)")),
            ("eps nan", {"groups": 1, "eps": float("nan")}, ArgumentError, ("eps", "nan")),
        )
    ),
    Refused("instance_norm, rank", lambda: ops.instance_norm(X), ShapeError, ("3", "(2, 3)")),
    *(
        Refused(f"local_response_norm, {what}",
                lambda options=options: ops.local_response_norm(
                    np.ones((2, 3, 4)), **{"size": 3, **options}), error, words)
        for what, options, error, words in (
            ("size", {"size": 0}, ArgumentError, ("size", "1", "0")),
            ("size type", {"size": 1.5}, DTypeError, ("size", "float")),
            ("alpha", {"alpha": -1}, ArgumentError, ("alpha", "0", "-1")),
            ("k", {"k": -1}, ArgumentError, ("k", "0", "-1")),
            ("beta", {"beta": float("nan")}, ArgumentError, ("beta", "nan")),
            ("alpha_of", {"alpha_of": "max"}, ArgumentError, ("mean", "sum", "max")),
            ("over", {"over": "all"}, ArgumentError, ("channels", "positions", "all")),
            ("axis", {"axis": 3}, ShapeError, ("axis 3", "(2, 3, 4)")),
        )
    ),
    Refused("batch norm, inference, no statistics", lambda: ops.batch_norm_infer(X, None, None),
            DTypeError, ("mean", "None")),
    Refused("batch norm, inference, eps < 0",
            lambda: ops.batch_norm_infer(X, np.zeros(3), np.ones(3), eps=-1), ArgumentError,
            ("eps", "-1")),
    *(
        Refused(f"{name}, {what}", lambda f=f, labels=labels: f(X, labels), error, words)
        for name, f in (("cross_entropy", losses.cross_entropy), ("nll", losses.nll))
        for what, labels, error, words in (
            ("label too large", np.array([0, 3]), ArgumentError, ("[0, 3)", "3", "position 1")),
            ("label negative", np.array([-1, 0]), ArgumentError, ("-1", "position 0")),
            ("float labels", np.array([0.0, 1.0]), DTypeError, ("integer", "float64")),
            ("list labels", [0, 1], DTypeError, ("ndarray", "list")),
            ("one-hot labels", np.eye(3, dtype=int)[:2], ShapeError, ("(2,)", "(2, 3)")),
            ("labels too few", np.array([0]), ShapeError, ("(2,)", "(1,)")),
        )
    ),
    *(
        Refused(f"{name}, reduction", lambda f=f: f(X, np.array([0, 1]), reduction="max"),
                ArgumentError, ("mean", "sum", "none", "max"))
        for name, f in (("cross_entropy", losses.cross_entropy), ("nll", losses.nll))
    ),
]  # fmt: skip
