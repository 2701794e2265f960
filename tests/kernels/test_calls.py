"""The calls that a replay keeps in place of a launcher: all of them, or none."""

from __future__ import annotations

import numpy as np
import pytest

from nbbn.kernels import _jit, batchnorm_cpu, elementwise_cpu, matmul_cpu, weighted_cpu


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def test_calls_do_what_the_launcher_does():
    a, b, out = arrays((64, 30), (30, 20), (64, 20))
    calls = _jit.calls_of(matmul_cpu.matmul_inside, [a, b, out])
    a[:], b[:] = arrays((64, 30), (30, 20), seed=1)
    for launch, arguments in calls:
        launch(*arguments)
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-5)


def test_nothing_runs_while_calls_are_collected():
    x, y = arrays((50,), (50,))
    before = y.copy()
    (call,) = _jit.calls_of(elementwise_cpu.relu, [x, y])
    np.testing.assert_array_equal(y, before)
    call[0](*call[1])
    np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_work_of_a_launcher_in_scratch_shows():
    @_jit.prepares
    def launcher(x, y):
        copy = _jit.scratch(0, x.size, x.dtype)[1][: x.size]
        np.copyto(copy, x)
        elementwise_cpu.relu(copy, y)

    x, y = arrays((50,), (50,))
    launcher(x, y)
    assert _jit.calls_of(launcher, [x, y]) == []


def running(count):
    return [*arrays((3,), (3,)), count, 0.1, True, *arrays((3,), (3,))]


@pytest.mark.parametrize(("launcher", "arguments"), [
    # Copied for BLAS: the copy would stay as it is.
    (matmul_cpu.matmul_inside, [arrays((64, 60))[0][:, ::2], *arrays((30, 20), (64, 20))]),
    # Numbers that are read at each call.
    (batchnorm_cpu.update_running, running(np.array(5.0))),
    # It computes something itself.
    (weighted_cpu.stats, [*arrays((8, 3), (8,)), 1e-5, *arrays((3,), (3,), (3,), (), ())]),
    (np.copyto, arrays((3,), (3,))),
], ids=["copy", "number in an array", "computes", "no launcher"])  # fmt: skip
def test_what_may_change_is_not_kept(launcher, arguments):
    assert _jit.calls_of(launcher, arguments) == []


def test_a_plain_number_is_kept():
    assert len(_jit.calls_of(batchnorm_cpu.update_running, running(5))) == 1
