"""Checks of first and second derivatives that anybody can run on a function of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _validation
from .._validation import generator, instance, positive, real
from ..errors import ArgumentError, DTypeError
from .second_order import grad
from .tensor import Parameter, Tape, Tensor, recording_tape

__all__ = ["gradcheck", "gradgradcheck"]


def gradcheck(
    function: Callable[..., Tensor],
    *inputs: np.ndarray,
    step: float = 1e-5,
    tolerance: float = 1e-6,
    directions: int = 8,
    rng: np.random.Generator | int | None = 0,
) -> float:
    """Compare gradients with central differences along random directions.

    For random w the scalar ``f = sum(w * function(*inputs))`` is differentiated by the tape, and
    ``(f(x + h d) - f(x - h d)) / 2h`` must equal ``sum(df/dx * d)`` for random unit directions d.

    Parameters
    ----------
    function : callable
        Takes one Tensor per input and returns a Tensor. It must be deterministic.
    *inputs : ndarray of float64
        Where to check; keep away from kinks such as relu at 0.
    step : float, default 1e-5
        h.
    tolerance : float, default 1e-6
        Largest allowed error, relative to the larger of 1 and the derivative.
    directions : int, default 8
        How many directions are tried for each input.
    rng : Generator, int or None, default 0
        Source of w and d.

    Returns
    -------
    float
        The largest error seen.

    Raises
    ------
    ArgumentError
        The gradients disagree, or an input received none.
    DTypeError
        An input is not float64: float32 has too few digits for differences.
    """
    return _compare(function, inputs, step, tolerance, directions, generator(rng), None)


def gradgradcheck(
    function: Callable[..., Tensor],
    *inputs: np.ndarray,
    step: float = 1e-5,
    tolerance: float = 1e-6,
    directions: int = 8,
    rng: np.random.Generator | int | None = 0,
) -> float:
    """Compare second derivatives with central differences of first ones.

    For random v, ``sum(v * gradient)`` of what ``grad(..., create_graph=True)`` gives for each
    input is a function of the inputs and of the gradient it starts from; `gradcheck` checks that.
    The function's result must depend on all inputs. Otherwise as `gradcheck`.

    Raises
    ------
    TapeError
        An operation has no second derivative.
    """
    _check_call(function, inputs)
    rng = generator(rng)
    output = function(*map(Tensor, inputs))
    instance(output, Tensor, "what the function returns")
    weights = rng.standard_normal(output.shape)
    probes = [rng.standard_normal(x.shape) for x in inputs]

    def first(*tensors: Tensor) -> Tensor:
        if recording_tape() is None:
            with Tape():
                return first(*(Parameter(x.data) for x in tensors))
        *xs, start = tensors
        gradients = grad(function(*xs), xs, start, create_graph=True)
        total, *others = [(g * v).sum() for g, v in zip(gradients, probes, strict=True)]
        for other in others:
            total = total + other
        return total

    return _compare(first, (*inputs, weights), step, tolerance, directions, rng, 0.0)


def _check_call(function: Any, inputs: tuple[np.ndarray, ...]) -> None:
    _validation.function(function, "function")
    for position, x in enumerate(inputs):
        if not isinstance(x, np.ndarray) or x.dtype != np.float64:
            kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
            raise DTypeError(f"gradcheck needs float64 arrays, input {position} is {kind}")


def _compare(
    function: Callable[..., Tensor],
    inputs: tuple[np.ndarray, ...],
    step: float,
    tolerance: float,
    directions: int,
    rng: np.random.Generator,
    missing: float | None,
) -> float:
    """Check gradients; `missing` is what a gradient that no input received counts as."""
    _check_call(function, inputs)
    step, tolerance = real(step, "step", above=0), real(tolerance, "tolerance", least=0)
    directions = positive(directions, "directions")
    parameters = [Parameter(x.copy()) for x in inputs]
    with Tape() as tape:
        output = function(*parameters)
        instance(output, Tensor, "what the function returns")
        weights = rng.standard_normal(output.shape)
        total = (output * weights).sum()
    tape.backward(total)

    def value(arrays: list[np.ndarray]) -> float:
        return float(np.sum(function(*(Tensor(a) for a in arrays)).data * weights))

    worst = 0.0
    for position, parameter in enumerate(parameters):
        gradient = parameter.grad
        if gradient is None:
            if missing is None:
                raise ArgumentError(f"input {position} received no gradient")
            gradient = np.full(parameter.shape, missing)
        for _ in range(directions):
            direction = rng.standard_normal(inputs[position].shape)
            direction /= np.linalg.norm(direction) or 1.0
            moved = [
                [x + sign * step * direction if i == position else x for i, x in enumerate(inputs)]
                for sign in (1, -1)
            ]
            expected = (value(moved[0]) - value(moved[1])) / (2 * step)
            found = float(np.sum(gradient * direction))
            error = abs(found - expected) / max(1.0, abs(expected))
            worst = max(worst, error)
            if not error <= tolerance:
                raise ArgumentError(
                    f"the gradient of input {position} is wrong: along a random direction the tape "
                    f"says {found:.9g}, central differences say {expected:.9g} "
                    f"(error {error:.2e}, allowed {tolerance:.0e})"
                )
    return worst
