"""Steps of recurrent cells in either engine, against the CPU twins in float64."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.functional.recurrent import KINDS
from nbbn.kernels import recurrent_cpu, recurrent_cuda
from tests.gpu.storage import ROUNDING, error, poisoned, shifted, stored, values

# (N, H): whole lanes, odd lengths, one number, several blocks.
SHAPES = [(3, 8), (5, 7), (1, 1), (70, 16)]
every_kind = pytest.mark.parametrize("kind", KINDS)


class Problem:
    """Operands of a step and of its backward, in a type and in float64."""

    def __init__(self, kind, shape, dtype, ended, arrange=np.copy):
        rng = np.random.default_rng(3)
        N, H = shape
        self.kind, self.dtype, found = kind, dtype, KINDS[kind]
        self.t = 2
        self.lengths = rng.integers(1, 5, N) if ended else np.empty(0, np.int64)
        self.lengths[: len(self.lengths) // 2] = self.t

        def draw(*widths):
            return [arrange(stored(rng.standard_normal((N, w * H)), dtype)) for w in widths]

        self.gates, self.product = draw(found.gates, found.gates)
        self.states, self.upstream = draw(*[1] * found.states), draw(*[1] * found.states)
        (self.dproduct,), self.carried = draw(1), draw(*[1] * found.states)
        self.saved_shape, self.gates_shape = (N, found.saved * H), (N, found.gates * H)
        self.shape = shape

    def run(self, module, convert, empty):
        """Forward and backward; returns what each array holds afterwards."""
        states, upstream, carried = (
            [convert(a) for a in arrays] for arrays in (self.states, self.upstream, self.carried)
        )
        saved, after = empty(self.saved_shape), [empty(self.shape) for _ in states]
        given = convert(self.gates), convert(self.product), *states, self.lengths, self.t
        getattr(module, f"{self.kind}_step")(*given, saved, *after)
        outputs = [empty(self.gates_shape) for _ in range(2 if self.kind == "gru" else 1)]
        getattr(module, f"{self.kind}_step_backward")(
            *upstream, convert(self.dproduct), saved, *states, *after, self.lengths, self.t,
            *carried, *outputs,
        )  # fmt: skip
        return [*after, *carried, *outputs]


def check(problem):
    want = problem.run(recurrent_cpu, lambda a: values(a).astype(np.float64).copy(), np.zeros)
    got = problem.run(recurrent_cuda, np.copy, lambda shape: poisoned(shape, problem.dtype))
    for found, expected in zip(got, want, strict=True):
        assert error(values(found), expected) < 8 * ROUNDING[problem.dtype]


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@every_kind
def test_steps(kind, shape, dtype, ended):
    check(Problem(kind, shape, dtype, ended))


@every_kind
def test_steps_misaligned(kind):
    check(Problem(kind, (3, 8), "float32", True, shifted))
