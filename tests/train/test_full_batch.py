"""Full-batch training against known optima, and its derivatives against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, sparse

import nbbn
from nbbn import losses, optim
from nbbn.errors import ArgumentError, DivergenceError, DTypeError, ShapeError, TapeError
from nbbn.train import Objective, fit, minimize
from nbbn.train.full_batch import METHODS

DOUBLE = np.float64


def regression(rng, count=80):
    x = rng.normal(size=(count, 5))
    return x, x @ rng.normal(size=(5, 2)) + 0.3 + 0.1 * rng.normal(size=(count, 2))


def classes(rng, count=200, kinds=3):
    x = rng.normal(size=(count, 4))
    return x, (x[:, :kinds] + 0.7 * rng.normal(size=(count, kinds))).argmax(axis=1)


def net(dtype=DOUBLE, **options):
    return nbbn.mlp((4, 6, 3), rng=0, dtype=dtype, **options)


def bits(model):
    return {name: array.tobytes() for name, array in model.state_dict().items()}


# ------------------------------------------------------------------------------ known optima


@pytest.mark.parametrize("method", METHODS)
def test_linear_regression_has_the_solution_of_least_squares(method, rng):
    x, y = regression(rng)
    model = nbbn.Dense(5, 2, rng=0, dtype=DOUBLE)
    found = minimize(model, losses.mse, x, y, method=method, tol=1e-10)
    wide = np.hstack([x, np.ones((len(x), 1))])
    exact = np.linalg.lstsq(wide, y, rcond=None)[0].T
    np.testing.assert_allclose(np.c_[model.weight.data, model.bias.data], exact, atol=1e-6)
    assert found.loss == pytest.approx(((wide @ exact.T - y) ** 2).mean(), rel=1e-9)
    assert found.history[-1].gradient_norm < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_ridge_regression_has_its_closed_form(method, rng):
    x, y = regression(rng)
    model = nbbn.Dense(5, 2, bias=False, rng=0, dtype=DOUBLE)
    minimize(model, losses.mse, x, y, method=method, weight_decay=0.7, tol=1e-10)
    # mse is a mean over 2 N elements: its second derivative is X'X / N.
    exact = np.linalg.solve(x.T @ x / len(x) + 0.7 * np.eye(5), x.T @ y / len(x)).T
    np.testing.assert_allclose(model.weight.data, exact, atol=1e-6)


@pytest.mark.parametrize("method", ["L-BFGS-B", "Newton-CG", "trust-ncg", "trust-krylov"])
@pytest.mark.parametrize("kinds", [2, 3])
def test_logistic_regression_is_that_of_scikit_learn(method, kinds, rng):
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = classes(rng, kinds=kinds)
    decay = 0.05
    peer = linear_model.LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=10_000)
    peer.fit(x, y)
    outputs = 1 if kinds == 2 else kinds
    model = nbbn.Dense(4, outputs, init="zeros", rng=0, dtype=DOUBLE)
    loss, targets = losses.cross_entropy, y
    if kinds == 2:
        loss, targets = losses.binary_cross_entropy, y.reshape(-1, 1).astype(float)
    minimize(model, loss, x, targets, method=method, weight_decay=decay, tol=1e-9)
    np.testing.assert_allclose(model.weight.data, peer.coef_, atol=2e-5)
    outputs = model(x).data
    if kinds == 3:  # a softmax does not see what all outputs share
        outputs = outputs - outputs.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(outputs.squeeze(), peer.decision_function(x), atol=1e-4)


def test_a_net_with_batch_norm_learns_all_examples(rng):
    x, y = classes(rng)
    model = net(activation="tanh")
    before = losses.cross_entropy(model(x), y).item()
    found = minimize(model, losses.cross_entropy, x, y, options={"maxiter": 300})
    assert found.loss < before / 2
    # With statistics taken again, evaluation computes nearly what was minimized.
    model.eval()
    assert losses.cross_entropy(model(x), y).item() == pytest.approx(found.loss, rel=0.1)
    hidden = x @ model[0].weight.data.T
    np.testing.assert_allclose(model[1].running_mean, hidden.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(model[1].running_var, hidden.var(axis=0, ddof=1), rtol=1e-10)


# ------------------------------------------------------------------------------- derivatives


@pytest.mark.parametrize("options", [{}, {"batch_norm": False}], ids=["batch norm", "plain"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_derivatives_are_those_of_finite_differences(options, decay, rng):
    x, y = classes(rng, 30)
    model = net(activation="tanh", **options)
    objective = Objective(model, losses.cross_entropy, x, y, weight_decay=decay)
    vector, direction = objective.vector(), rng.normal(size=objective.size)
    direction /= np.linalg.norm(direction)
    step = 1e-5
    ahead, behind = (
        objective.value_and_gradient(vector + sign * step * direction) for sign in (1, -1)
    )
    value, gradient = objective.value_and_gradient(vector)
    weights = [p.data for p in model.parameters() if p.ndim > 1]
    plain = losses.cross_entropy(model(x), y).item()
    squares = sum(float((w**2).sum()) for w in weights)
    assert value == pytest.approx(plain + decay / 2 * squares, rel=1e-12)
    slope = (ahead[0] - behind[0]) / (2 * step)
    assert gradient @ direction == pytest.approx(slope, rel=1e-7, abs=1e-9)
    product = objective.hessian_product(vector, direction)
    np.testing.assert_allclose(product, (ahead[1] - behind[1]) / (2 * step), rtol=2e-5, atol=1e-7)
    # It is linear, and symmetric.
    other = rng.normal(size=objective.size)
    both = objective.hessian_product(vector, direction + 2 * other)
    second = objective.hessian_product(vector, other)
    np.testing.assert_allclose(both, product + 2 * second, atol=1e-10)
    assert other @ product == pytest.approx(direction @ second, rel=1e-9)


def test_the_hessian_matrix_of_least_squares_is_known(rng):
    x, y = regression(rng)
    model = nbbn.Dense(5, 2, bias=False, rng=0, dtype=DOUBLE)
    objective = Objective(model, losses.mse, x, y)
    found = np.array([objective.hessian_product(objective.vector(), row) for row in np.eye(10)])
    np.testing.assert_allclose(found, np.kron(np.eye(2), x.T @ x / len(x)), atol=1e-12)
    # It serves other functions of SciPy too.
    operator = sparse.linalg.LinearOperator(
        (10, 10), matvec=lambda v: objective.hessian_product(objective.vector(), v), dtype=DOUBLE
    )
    (largest,) = sparse.linalg.eigsh(operator, 1, return_eigenvectors=False)
    assert largest == pytest.approx(np.linalg.eigvalsh(x.T @ x / len(x))[-1], rel=1e-8)


def test_an_evaluation_leaves_everything_but_the_parameters(rng):
    x, y = classes(rng)
    model = net()
    optimizer = optim.Adam(model.parameters())
    fit(model, (x, y), optimizer, epochs=1)
    model.eval()
    gradient = rng.normal(size=model[0].weight.shape)
    model[0].weight.grad = gradient.copy()
    objective = Objective(model, losses.cross_entropy, x, y)
    before, vector = bits(model), objective.vector()
    objective.value_and_gradient(vector)
    objective.hessian_product(vector, vector)
    assert bits(model) == before
    assert not model.training
    np.testing.assert_array_equal(model[0].weight.grad, gradient)
    assert model[2].weight.grad is None
    with pytest.raises(TypeError):
        objective.hessian_product(vector, None)
    assert bits(model) == before


def test_frozen_parameters_stay(rng):
    x, y = classes(rng)
    model = net()
    model[0].weight.requires_grad = False
    before = model[0].weight.data.copy()
    objective = Objective(model, losses.cross_entropy, x, y)
    assert objective.size == sum(p.size for p in model.parameters()) - before.size
    minimize(model, losses.cross_entropy, x, y, options={"maxiter": 5})
    np.testing.assert_array_equal(model[0].weight.data, before)


# ------------------------------------------------------------------------ history, the end


@pytest.mark.parametrize("method", METHODS)
def test_the_history_is_that_of_the_iterations(method, rng):
    x, y = classes(rng)
    model = net(activation="tanh")
    seen = []
    found = minimize(
        model, losses.cross_entropy, x, y, method=method, options={"maxiter": 6},
        callback=seen.append,
    )  # fmt: skip
    assert seen == found.history
    assert [own.iteration for own in seen] == list(range(1, len(seen) + 1))
    assert len(seen) == found.result.nit
    fallen = [own.loss for own in seen]
    assert fallen == sorted(fallen, reverse=True)
    assert fallen[-1] == found.loss
    assert seen[-1].evaluations >= len(seen)
    objective = Objective(model, losses.cross_entropy, x, y)
    value, gradient = objective.value_and_gradient(objective.vector())
    assert (value, np.linalg.norm(gradient)) == (found.loss, seen[-1].gradient_norm)


@pytest.mark.parametrize("method", METHODS)
def test_a_callback_ends_the_training(method, rng):
    x, y = classes(rng)
    model = net(activation="tanh")
    found = minimize(
        model, losses.cross_entropy, x, y, method=method, callback=lambda own: own.iteration == 2
    )
    assert len(found.history) == 2
    objective = Objective(model, losses.cross_entropy, x, y)
    assert objective.value_and_gradient(objective.vector())[0] == found.history[-1].loss


def test_it_is_what_scipy_does_with_the_same_function(rng):
    x, y = classes(rng)
    model = net()
    objective = Objective(net(), losses.cross_entropy, x, y)
    theirs = optimize.minimize(
        objective.value_and_gradient, objective.vector(), jac=True, method="L-BFGS-B",
        options={"maxiter": 20},
    )  # fmt: skip
    found = minimize(model, losses.cross_entropy, x, y, options={"maxiter": 20})
    assert found.loss == theirs.fun
    objective.assign(theirs.x)
    for p, q in zip(model.parameters(), objective.model.parameters(), strict=True):
        np.testing.assert_array_equal(p.data, q.data)


def test_float32_and_tables_are_taken(rng):
    pandas = pytest.importorskip("pandas")
    x, y = classes(rng)
    model = net(np.float32)
    found = minimize(
        model, losses.cross_entropy, pandas.DataFrame(x), y.tolist(), options={"maxiter": 20}
    )
    assert model[0].weight.dtype == np.float32
    assert found.loss < found.history[0].loss


def test_sparse_rows_are_taken_but_have_no_second_derivatives(rng):
    x, y = classes(rng)
    x[np.abs(x) < 0.5] = 0
    found = []
    for own in (x, sparse.csr_matrix(x)):
        model = net()
        found.append(minimize(model, losses.cross_entropy, own, y, options={"maxiter": 8}).loss)
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    with pytest.raises(TapeError, match="SparseLinear has no second derivative"):
        minimize(net(), losses.cross_entropy, sparse.csr_matrix(x), y, method="trust-ncg")


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"method": "SLSQP"}, ArgumentError, "method must be one of"),
        ({"tol": -1.0}, ArgumentError, "tol"),
        ({"weight_decay": -1.0}, ArgumentError, "weight_decay"),
        ({"options": 3}, DTypeError, "options must map names"),
        ({"options": {"maxiter": 0}}, ArgumentError, "maxiter"),
        ({"options": {"gtol": "1"}}, DTypeError, "gtol must be a number"),
        ({"callback": 3}, DTypeError, "callback must be a function"),
        ({"model": 3}, DTypeError, "model must be a Module"),
        ({"model": nbbn.ReLU()}, ArgumentError, "no parameters"),
        ({"loss": 3}, DTypeError, "loss must be a function"),
        ({"loss": lambda output, y: 0.5}, DTypeError, "the loss must be a Tensor"),
        ({"x": "a"}, DTypeError, "x must hold numbers"),
        ({"y": ["a"] * 200}, DTypeError, "y must hold numbers"),
        ({"model": net(dropout=0.5)}, ArgumentError, "changes from one evaluation to the next"),
        ({"x": np.full((200, 4), np.nan)}, DivergenceError, "nan at the start: the batch itself"),
    ],
)
def test_refusals_leave_the_model_as_it_was(changes, error, words, rng):
    x, y = classes(rng)
    model = net()
    given = {"model": model, "loss": losses.cross_entropy, "x": x, "y": y} | changes
    model = given["model"]
    before = bits(model) if isinstance(model, nbbn.Module) else None
    with pytest.raises(error, match=words):
        minimize(**given)
    assert before is None or bits(model) == before


def test_an_error_in_a_callback_leaves_the_model_as_it_was(rng):
    x, y = classes(rng)
    model = net()
    before = bits(model)

    def fail(_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        minimize(model, losses.cross_entropy, x, y, callback=fail)
    assert bits(model) == before


def test_vectors_that_do_not_fit_and_operations_without_a_second_derivative(rng):
    x, y = classes(rng)
    objective = Objective(net(), losses.cross_entropy, x, y)
    with pytest.raises(ShapeError, match=rf"shape \({objective.size},\), got \(3,\)"):
        objective.assign(np.ones(3))
    with pytest.raises(DTypeError, match="array of numbers, got list"):
        objective.value_and_gradient([1.0])
    model = nbbn.Sequential(
        nbbn.Dense(4, 3, rng=0, dtype=DOUBLE), nbbn.InPlaceBatchNorm(3, dtype=DOUBLE)
    )
    with pytest.raises(TapeError, match="second derivative"):
        minimize(model, losses.cross_entropy, x, y, method="trust-ncg")
