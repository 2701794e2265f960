"""Training on all examples at once, by the methods of `scipy.optimize.minimize`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .. import backend
from .._validation import choice, function, instance, mapping, number, positive, real
from ..autograd.second_order import grad
from ..autograd.tensor import Tape, Tensor, as_tensor
from ..data.tables import as_numbers
from ..errors import ArgumentError, DivergenceError, DTypeError, ShapeError
from ..nn.batchnorm import BatchNorm
from ..nn.module import Module
from ..nn.observe import first_nonfinite
from ..nn.variants import recalibrate
from .step import Loss

__all__ = ["METHODS", "Iteration", "Minimized", "Objective", "minimize"]

# By name: whether the method takes products of the Hessian matrix with vectors.
METHODS = {
    "L-BFGS-B": False, "BFGS": False, "CG": False, "Newton-CG": True, "trust-ncg": True,
    "trust-krylov": True,
}  # fmt: skip


class Objective:
    """The loss on a whole batch as a function of one float64 vector: all parameters in a row.

    Batch normalization in training mode is part of it: with the batch's own statistics, the loss is
    a deterministic, smooth function of the parameters. An evaluation leaves the model's parameters
    at the vector, and its running statistics, its mode and its gradients as they were.

    Parameters
    ----------
    model : Module
        Computes in training mode.
    loss : callable
        Maps (output Tensor, y) to a Tensor of one element.
    x : ndarray, list or DataFrame, shape (N, ...); or sparse rows, (N, F)
        All examples, brought to the type of the parameters. Sparse rows have no `hessian_product`.
    y : ndarray, list, Series or DataFrame
        Their targets, as the loss takes them.
    weight_decay : float, default 0
        ``weight_decay / 2 * sum(w**2)`` is added, over the parameters of more than one dimension:
        weights, but neither gamma, beta nor biases.

    Raises
    ------
    DTypeError
        An argument of another type.
    ArgumentError
        A model without parameters to train.
    """

    def __init__(
        self, model: Module, loss: Loss, x: Any, y: Any, *, weight_decay: float = 0.0
    ) -> None:
        instance(model, Module, "model")
        function(loss, "loss")
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise ArgumentError("the model has no parameters to train")
        dtype = self._parameters[0].dtype
        rows = backend.as_csr(x)
        x, y = as_numbers(x, "x"), as_numbers(y, "y")
        for name, array in (("x", x), ("y", y))[rows is not None :]:
            if not backend.is_array(array) or array.dtype.kind not in "biuf":
                raise DTypeError(f"{name} must hold numbers, got {type(array).__name__}")
        self.model, self.loss = model, loss
        self._x: Any = backend.contiguous(x, dtype) if rows is None else rows
        self._y = y
        decay = real(weight_decay, "weight_decay", least=0)
        self._decay = np.concatenate(
            [np.full(p.size, decay if p.ndim > 1 else 0.0) for p in self._parameters]
        )

    @property
    def size(self) -> int:
        """Number of all parameters, the length of the vector."""
        return self._decay.size

    def vector(self) -> np.ndarray:
        """Return the parameters in a row, float64 (size,)."""
        rows = [backend.host(p.data).ravel() for p in self._parameters]
        return np.asarray(np.concatenate(rows, dtype=np.float64))

    def assign(self, vector: np.ndarray) -> None:
        """Set the parameters to `vector`, float64 (size,)."""
        for p, part in zip(self._parameters, self._parts(vector), strict=True):
            backend.assign(p.data, part)

    def value_and_gradient(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        """Compute the loss at `vector` (size,) and its gradient, float64 (size,)."""
        self.assign(vector)
        value, found = self._evaluate(lambda loss: loss)
        decayed = self._decay * vector
        return value + 0.5 * float(decayed @ vector), found + decayed

    def hessian_product(self, vector: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Compute the product of the Hessian matrix at `vector` (size,) with `direction` (size,).

        It differentiates the product of gradient and direction. A TapeError where an operation of
        the model has no second derivative.
        """
        parts = self._parts(direction)
        self.assign(vector)

        def slope(loss: Tensor) -> Tensor:
            gradients = grad(loss, self._parameters, create_graph=True)
            terms = [
                (g * part.astype(g.dtype)).sum() for g, part in zip(gradients, parts, strict=True)
            ]
            return sum(terms[1:], terms[0])

        _, found = self._evaluate(slope)
        return np.asarray(found + self._decay * direction)

    def _parts(self, vector: np.ndarray) -> list[np.ndarray]:
        """Cut a vector into arrays of the parameters' shapes."""
        if not isinstance(vector, np.ndarray) or vector.dtype.kind not in "fiu":
            raise DTypeError(f"a vector must be an array of numbers, got {type(vector).__name__}")
        if vector.shape != (self.size,):
            raise ShapeError(f"a vector must have shape ({self.size},), got {vector.shape}")
        ends = np.cumsum([p.size for p in self._parameters])[:-1]
        pieces = np.split(vector, ends)
        return [a.reshape(p.shape) for a, p in zip(pieces, self._parameters, strict=True)]

    def _evaluate(self, quantity: Callable[[Tensor], Tensor]) -> tuple[float, np.ndarray]:
        """Return the loss, and the gradient of a quantity that is computed from it."""
        modes = [(module, module.training) for module in self.model.modules()]
        before = [None if p.grad is None else p.grad.copy() for p in self._parameters]
        buffers = [(array, array.copy()) for array in self._buffers()]
        for p in self._parameters:
            p.grad = None
        try:
            self.model.train()
            with np.errstate(all="ignore"), Tape() as tape:
                loss = self.loss(self.model(as_tensor(self._x)), self._y)
                instance(loss, Tensor, "the loss")
                target = quantity(loss)
            if tape.holds(target):
                tape.backward(target)
            rows = [
                np.zeros(p.size) if p.grad is None else backend.host(p.grad).ravel()
                for p in self._parameters
            ]
            return loss.item(), np.concatenate(rows).astype(np.float64)
        finally:
            for array, old in buffers:
                array[...] = old
            for p, gradient in zip(self._parameters, before, strict=True):
                p.grad = gradient
            for module, mode in modes:
                module.training = mode

    def _buffers(self) -> list[Any]:
        found = (getattr(m, name) for m in self.model.modules() for name in m.buffers)
        return [array for array in found if array is not None]


class Iteration(NamedTuple):
    """Where `minimize` stood after an iteration.

    Attributes
    ----------
    iteration : int
        1 for the first.
    loss : float
        With weight decay.
    gradient_norm : float
        Euclidean norm of its gradient.
    evaluations : int
        Of the loss and its gradient, so far.
    seconds : float
        Since the start.
    """

    iteration: int
    loss: float
    gradient_norm: float
    evaluations: int
    seconds: float


class Minimized(NamedTuple):
    """What `minimize` found.

    Attributes
    ----------
    loss : float
        The lowest, with weight decay.
    success : bool
        Whether the method says that it has converged.
    message : str
        How it ended, in SciPy's words.
    history : list of Iteration
    result : scipy.optimize.OptimizeResult
        All that SciPy returned.
    """

    loss: float
    success: bool
    message: str
    history: list[Iteration]
    result: Any


def minimize(
    model: Module,
    loss: Loss,
    x: Any,
    y: Any,
    *,
    method: str = "L-BFGS-B",
    weight_decay: float = 0.0,
    tol: float | None = None,
    options: dict[str, Any] | None = None,
    callback: Callable[[Iteration], Any] | None = None,
) -> Minimized:
    """Train a model on all examples at once, by `scipy.optimize.minimize`.

    `Objective` says what is minimized: the loss of the whole batch in training mode, as a function
    of all parameters in one float64 vector. In the end the running statistics of batch
    normalization are taken again from `x`, so that evaluation computes what was minimized (but for
    the unbiased variance). Make the model in float64: in float32 line searches end early.

    Parameters
    ----------
    model : Module
        Trained in place; in the mode that it had when this returns.
    loss, x, y
        As for `Objective`.
    method : {"L-BFGS-B", "BFGS", "CG", "Newton-CG", "trust-ncg", "trust-krylov"}
        The last three take products with the Hessian matrix, from second derivatives.
    weight_decay : float, default 0
        As for `Objective`.
    tol : float, optional
        When to end, as the method means it.
    options : dict, optional
        Of the method, such as ``{"maxiter": 100}``.
    callback : callable, optional
        Called with the `Iteration` after each; training ends where it returns True.

    Returns
    -------
    Minimized

    Raises
    ------
    ArgumentError
        An unknown method; a loss that changes from one evaluation to the next, such as with
        Dropout.
    DivergenceError
        The loss is not finite at the start.
    DTypeError
        An argument of another type.

    Examples
    --------
    >>> found = nbbn.train.minimize(model, nbbn.losses.mse, x, y, options={"maxiter": 200})
    >>> found.loss, found.success
    """
    from scipy import optimize

    choice(method, tuple(METHODS), "method")
    if tol is not None:
        tol = real(tol, "tol", least=0)
    if options is not None:
        mapping(options, "options", "settings of the method")
        for name, value in options.items():
            if name == "maxiter":
                positive(value, name)
            elif not isinstance(value, bool):
                number(value, name)
    if callback is not None:
        function(callback, "callback")
    objective = Objective(model, loss, x, y, weight_decay=weight_decay)
    start = objective.vector()
    _check_start(objective, start)
    watch = _Watch(objective, callback)
    try:
        found = optimize.minimize(
            watch, start, jac=True, method=method, tol=tol, options=dict(options or {}),
            hessp=objective.hessian_product if METHODS[method] else None, callback=watch.iteration,
        )  # fmt: skip
        objective.assign(found.x)
        if any(
            isinstance(m, BatchNorm) and m.running_mean is not None and not m.frozen
            for m in model.modules()
        ):
            recalibrate(model, [objective._x])
    except BaseException:
        objective.assign(start)
        raise
    return Minimized(
        float(found.fun), bool(found.success), str(found.message), watch.history, found
    )


def _check_start(objective: Objective, start: np.ndarray) -> None:
    first, again = (objective.value_and_gradient(start) for _ in range(2))
    if not (math.isfinite(first[0]) and np.isfinite(first[1]).all()):
        where = first_nonfinite(objective.model, objective._x, objective._y, objective.loss)
        raise DivergenceError(f"the loss is {first[0]} at the start: {where.text}; {where.advice}")
    if first[0] != again[0] or not np.array_equal(first[1], again[1]):
        raise ArgumentError(
            "the loss changes from one evaluation to the next, with the same parameters: leave "
            "Dropout and other random numbers out"
        )


class _Watch:
    """Evaluates an objective and keeps the history."""

    def __init__(self, objective: Objective, callback: Callable[[Iteration], Any] | None) -> None:
        self._objective, self._callback = objective, callback
        self._begin, self._evaluations = time.perf_counter(), 0
        # Of this iteration: the method goes on from one of them.
        self._seen: dict[bytes, tuple[float, float]] = {}
        self.history: list[Iteration] = []

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self._objective.value_and_gradient(vector)
        self._evaluations += 1
        self._seen[vector.tobytes()] = value, float(np.linalg.norm(gradient))
        # Some line searches stumble over NaN, but all of them turn back from Inf.
        return value if math.isfinite(value) else math.inf, gradient

    def iteration(self, vector: np.ndarray) -> None:
        """Note where the method stands, and tell the callback."""
        found = self._seen.get(vector.tobytes())
        if found is None:
            self(vector)
            found = self._seen[vector.tobytes()]
        self._seen = {vector.tobytes(): found}
        seconds = time.perf_counter() - self._begin
        number = len(self.history) + 1
        self.history.append(Iteration(number, *found, self._evaluations, seconds))
        answer = None if self._callback is None else self._callback(self.history[-1])
        if isinstance(answer, bool | np.bool_) and answer:
            raise StopIteration
