"""Every differentiable operation, driven by the table in `cases`."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest

import nbbn
from nbbn import Parameter, Tape, Tensor, ops
from nbbn.errors import DTypeError, ShapeError
from tests.helpers import views
from tests.helpers.cases import CASES, REFUSED, Case, Refused

FLOATS = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-12}

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: dtype.__name__)


def assert_close(got, want, tolerance: float) -> None:
    """Check that the largest error is at most `tolerance` times the largest value."""
    assert got.shape == np.shape(want)
    scale = max(float(np.max(np.abs(want), initial=0)), 1e-30)
    assert float(np.max(np.abs(got - want), initial=0)) <= tolerance * scale


def differentiate(case: Case, arrays: list[np.ndarray], weights=None):
    """Return the result for `arrays`, the weights its elements got, and the gradients."""
    parameters = [Parameter(array) for array in arrays]
    with Tape() as tape:
        y = case.function(*parameters)
    if weights is None:
        weights = np.random.default_rng(3).normal(size=y.shape)
        weights = np.asarray(weights, y.dtype)
    tape.backward(y, weights)
    return y.data, weights, [p.grad for p in parameters]


def test_every_operation_has_a_case(rng):
    catalogue = {op for op in vars(ops).values() if inspect.isclass(op) and issubclass(op, nbbn.Op)}
    used = set()
    for case in CASES:
        with Tape() as tape:
            case.function(*map(Parameter, case.arrays(rng)))
        used |= {node.op for node in tape._nodes}
    # Sparse rows are no tensor, and other ranks are other processes: tests of their own.
    assert catalogue - {ops.BatchNormSync, ops.BatchRenorm, ops.SparseLinear} == used


def test_every_public_function_of_ops_has_a_case():
    functions = {
        name
        for name, value in vars(ops).items()
        if inspect.isfunction(value) and value.__module__ == ops.__name__ and name[0] != "_"
    } - {"batch_renorm", "sync_batch_norm"}
    assert functions <= {case.name.split(",")[0].split(".")[-1] for case in CASES}


@every_dtype
@every_case
def test_value_matches_the_reference(case, dtype, rng):
    arrays = case.arrays(rng, dtype)
    y = case.function(*map(Tensor, arrays))
    assert y.dtype == dtype
    assert_close(y.data, case.reference(*arrays), TOLERANCE[dtype])


@every_case
def test_gradient_matches_central_differences(case, rng):
    assert nbbn.gradcheck(case.function, *case.arrays(rng), tolerance=1e-6) <= 1e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@every_case
def test_value_and_gradient_match_torch(case, dtype, tolerance, rng):
    torch = pytest.importorskip("torch")
    arrays = case.arrays(rng, dtype)
    y, weights, gradients = differentiate(case, arrays)
    leaves = [torch.tensor(array, requires_grad=True) for array in arrays]
    expected = case.torch(torch, *leaves)
    expected.backward(torch.tensor(weights))
    assert_close(y, expected.detach().numpy(), tolerance)
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert_close(gradient, leaf.grad.numpy(), tolerance)


@every_dtype
@every_case
def test_gradients_have_the_dtype_and_shape_of_their_leaf(case, dtype, rng):
    arrays = case.arrays(rng, dtype)
    for array, gradient in zip(arrays, differentiate(case, arrays)[2], strict=True):
        assert gradient.dtype == dtype
        assert gradient.shape == array.shape


@every_case
def test_gradients_keep_the_dtype_of_their_leaf_where_types_mix(case, rng):
    """Each input in turn is float32 among float64: the float32 leaf gets a float32 gradient."""
    wide = case.arrays(rng)
    for position in range(len(wide)):
        arrays = list(wide)
        arrays[position] = arrays[position].astype(np.float32)
        for array, gradient in zip(arrays, differentiate(case, arrays)[2], strict=True):
            assert gradient.dtype == array.dtype


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": lambda array: np.array(array, order="F"),
    "every second": views.sliced,
    "reversed": views.flipped,
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape) if array.ndim else array,
    "read-only": views.read_only,
    "other byte order": views.big_endian,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@every_case
def test_layout_changes_nothing(case, layout, rng):
    arrays = [LAYOUTS[layout](array) for array in case.arrays(rng)]
    dense = [np.array(array, np.float64, order="C") for array in arrays]
    y, weights, gradients = differentiate(case, arrays)
    want, _, expected = differentiate(case, dense, weights)
    assert_close(y, want, 1e-12)
    for gradient, other in zip(gradients, expected, strict=True):
        assert_close(gradient, other, 1e-12)


@pytest.mark.parametrize("layout", ["fortran", "every second", "reversed"])
@every_case
def test_upstream_gradient_of_any_layout(case, layout, rng):
    arrays = case.arrays(rng)
    _, weights, expected = differentiate(case, arrays)
    _, _, gradients = differentiate(case, arrays, LAYOUTS[layout](weights))
    for gradient, other in zip(gradients, expected, strict=True):
        assert_close(gradient, other, 1e-12)


@every_case
def test_inputs_and_upstream_gradient_stay_as_they_are(case, rng):
    arrays = case.arrays(rng)
    copies = [array.copy() for array in arrays]
    _, weights, _ = differentiate(case, arrays)
    kept = weights.copy()
    differentiate(case, arrays, weights)
    for array, copy in zip([*arrays, weights], [*copies, kept], strict=True):
        np.testing.assert_array_equal(array, copy)


@every_case
def test_gradients_share_no_memory(case, rng):
    """Changing one in place must change neither another, nor the data, nor the caller's array."""
    arrays = case.arrays(rng)
    y, weights, gradients = differentiate(case, arrays)
    for position, gradient in enumerate(gradients):
        for other in (*gradients[:position], *arrays, y, weights):
            assert not np.shares_memory(gradient, other)


@every_case
def test_only_what_requires_a_gradient_gets_one(case, rng):
    """With each input alone as the Parameter, its gradient is the one it has among the others."""
    arrays = case.arrays(rng)
    _, weights, expected = differentiate(case, arrays)
    for position, gradient in enumerate(expected):
        operands = [Tensor(array) for array in arrays]
        operands[position] = Parameter(arrays[position])
        with Tape() as tape:
            y = case.function(*operands)
        tape.backward(y, weights)
        np.testing.assert_array_equal(operands[position].grad, gradient)
        assert all(x.grad is None for i, x in enumerate(operands) if i != position)


# ----------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("case", "shapes"),
    [
        pytest.param(case, shapes, id=f"{case.name} {shapes}")
        for case in CASES
        for shapes in case.misfits
    ],
)
def test_shapes_that_do_not_fit_are_refused(case, shapes, rng):
    operands = [Tensor(case.domain(rng, shape)) for shape in shapes]
    with pytest.raises(ShapeError) as caught:
        case.function(*operands)
    named = [str(part) for shape in shapes for part in (shape, shape[:1])]
    assert any(name in str(caught.value) for name in (*named, "0-dimensional"))


WRONG = {
    "complex128": lambda array: array.astype(np.complex128),
    "int64": lambda array: (10 * array).astype(np.int64),
    "bool": lambda array: array > 0,
    "object": lambda array: array.astype(object),
    "list": lambda array: array.tolist(),
    "str": lambda array: "abc",
}


@pytest.mark.parametrize("found", WRONG)
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if "ops." in case.name or "losses." in case.name],
    ids=lambda case: case.name,
)
def test_types_that_do_not_fit_are_refused(case, found, rng):
    arrays = case.arrays(rng)
    for position, array in enumerate(arrays):
        operands = list(arrays)
        operands[position] = WRONG[found](array)
        with pytest.raises(DTypeError, match=found):
            case.function(*operands)


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_arguments_that_do_not_fit_are_refused(refused: Refused):
    with pytest.raises(refused.error) as caught:
        refused.call()
    for word in refused.words:
        assert word in str(caught.value)
