"""The estimators are scikit-learn's own kind: its checks, its tools, and what its MLPs lack."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn import datasets
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

import nbbn
from nbbn.errors import ArgumentError, DTypeError
from nbbn.sklearn import NbbnClassifier, NbbnRegressor

PAIRS = [(NbbnClassifier, MLPClassifier), (NbbnRegressor, MLPRegressor)]
SPARSE = pytest.importorskip("scipy.sparse")


@parametrize_with_checks(
    [NbbnClassifier(), NbbnRegressor(), NbbnClassifier(solver="lbfgs", max_iter=20)]
)
@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize(("own", "peer"), PAIRS)
@pytest.mark.filterwarnings("ignore")
def test_every_check_that_its_perceptron_passes_is_passed(own, peer):
    passed = [
        Counter(
            found["check_name"]
            for found in check_estimator(kind(), on_skip=None, on_fail=None)
            if found["status"] == "passed"
        )
        for kind in (own, peer)
    ]
    assert passed[1].total() > 50
    assert passed[1] <= passed[0]


def blobs(classes=3, count=300, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = rng.normal(size=(count, 5)) + 2 * np.eye(classes, 5)[y]
    return x, y


def quick(kind=NbbnClassifier, **options):
    return kind((16,), **{"max_iter": 40, "random_state": 0, "learning_rate_init": 0.01} | options)


@pytest.mark.parametrize("names", [["no", "yes"], [False, True], ["a", "b", "c"], [-1, 7]])
def test_labels_of_any_kind_come_back(names):
    x, y = blobs(len(names))
    labels = np.array(names)[y]
    model = quick().fit(x, labels)
    assert model.classes_.tolist() == sorted(names)
    assert model.predict(x).dtype == labels.dtype
    assert model.score(x, labels) > 0.85
    found = model.predict_proba(x)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(x)), found)


def test_probabilities_are_those_of_the_model():
    x, y = blobs()
    model = quick().fit(x, y)
    outputs = nbbn.functional.softmax(model.model_(x).numpy())
    np.testing.assert_allclose(model.predict_proba(x), outputs, rtol=1e-12)
    assert not model.model_.training


def test_several_labels_of_an_example():
    x, y = datasets.make_multilabel_classification(
        400, 10, n_classes=3, allow_unlabeled=False, random_state=0
    )
    model = quick(max_iter=60)
    model.fit(x, y)
    assert model.predict_proba(x).shape == (400, 3)
    assert (model.predict(x) == y).mean() > 0.85
    np.testing.assert_allclose(np.exp(model.predict_log_proba(x)), model.predict_proba(x))
    again = quick(max_iter=60).fit(x, SPARSE.csr_matrix(y))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    with pytest.raises(ValueError, match="column for each label"):
        model.fit(x, y + np.arange(3))


def test_several_outputs_and_their_scale():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4))
    y = x @ rng.normal(size=(4, 2)) * [1e-3, 1e4] + [5, -1e5]
    model = quick(NbbnRegressor, max_iter=150).fit(x, y)
    assert model.predict(x).shape == (500, 2)
    assert model.score(x, y) > 0.98
    assert quick(NbbnRegressor).fit(x, y[:, 0]).predict(x).shape == (500,)
    constant = quick(NbbnRegressor).fit(x, np.full(500, 7.0))
    np.testing.assert_allclose(constant.predict(x), 7, atol=0.5)


@pytest.mark.parametrize("kind", [NbbnClassifier, NbbnRegressor])
@pytest.mark.parametrize(
    "options",
    [{}, {"batch_norm": False}, {"activation": "tanh"}, {"solver": "lbfgs", "max_iter": 10}],
)
def test_an_example_of_weight_2_is_two_examples(kind, options):
    x, y = blobs(count=40)
    y = y if kind is NbbnClassifier else x[:, 0] + y
    weights = np.random.default_rng(1).integers(0, 4, 40)
    one = quick(kind, shuffle=False, **options).fit(x, y, weights)
    other = quick(kind, shuffle=False, **options).fit(x.repeat(weights, 0), y.repeat(weights))
    outputs = (m.predict_proba(x) if hasattr(m, "predict_proba") else m.predict(x)
               for m in (one, other))  # fmt: skip
    np.testing.assert_allclose(*outputs, rtol=1e-7)


def test_weights_of_classes_are_weights_of_their_examples():
    x, y = blobs(2)
    weights = np.where(y == 1, 5.0, 0.5)
    by_class = quick(class_weight={0: 0.5, 1: 5.0}).fit(x, y)
    by_example = quick().fit(x, y, weights)
    np.testing.assert_array_equal(by_class.predict_proba(x), by_example.predict_proba(x))
    assert by_class.predict(x).mean() > quick().fit(x, y).predict(x).mean()
    balanced = quick(class_weight="balanced")
    with pytest.raises(ArgumentError, match="cannot balance"):
        balanced.partial_fit(x, y, [0, 1])
    balanced.fit(x, y)
    with pytest.raises(ArgumentError, match="all sample weights are 0"):
        quick(class_weight={0: 0.0, 1: 0.0}).fit(x, y)


def test_lbfgs_minimizes_the_whole_loss():
    x, y = blobs(count=150)
    stochastic, whole = (
        quick(activation="tanh", max_iter=100, **options).fit(x.astype(np.float32), y)
        for options in ({}, {"solver": "lbfgs"})
    )
    assert whole.loss_ < stochastic.loss_
    assert whole.n_iter_ == len(whole.loss_curve_) <= 100
    assert whole.model_.parameters()[0].dtype == np.float64
    # Without batch norm and weights of the loss it is what scikit-learn minimizes, too.
    own = quick(solver="lbfgs", batch_norm=False, activation="tanh", max_iter=2000, tol=1e-6,
                weight_decay=0.1).fit(x, y)  # fmt: skip
    peer = MLPClassifier((16,), solver="lbfgs", activation="tanh", max_iter=2000, tol=1e-6,
                         alpha=0.1 * len(x), random_state=0).fit(x, y)  # fmt: skip
    assert own.loss_ == pytest.approx(peer.loss_, rel=1e-3)
    assert not hasattr(own, "partial_fit")
    with pytest.raises(ArgumentError, match="Dropout"):
        quick(solver="lbfgs", dropout=0.1).fit(x, y)


def test_weighted_steps_are_replayed(monkeypatch):
    made = []
    record = nbbn.train.loop.record_step
    monkeypatch.setattr(
        nbbn.train.loop, "record_step", lambda *parts: made.append(record(*parts)) or made[-1]
    )
    x, y = blobs()
    quick(dropout=0.1).fit(x, y, np.linspace(0.5, 1, len(y)))
    quick(NbbnRegressor).fit(x, x[:, 0], np.linspace(0.5, 1, len(y)))
    quick().fit(SPARSE.csr_matrix(np.where(x > 1, x, 0)), y)
    assert [step.refusal for step in made] == [None, None, None]
    assert [step.recordings for step in made] == [4, 4, 4]


@pytest.mark.parametrize("weighted", [False, True])
def test_early_stopping_keeps_the_best_epoch(weighted):
    x, y = blobs(count=200)
    x, y = x.astype(np.float32), np.where(np.random.default_rng(2).random(200) < 0.3, 0, y)
    model = quick(early_stopping=True, validation_fraction=0.4, n_iter_no_change=3, max_iter=300)
    model.fit(x, y, np.linspace(0.1, 1, 200) if weighted else None)
    curve = model.validation_loss_curve_
    assert model.n_iter_ == len(curve) < 300
    assert np.argmin(curve) == len(curve) - 4
    probabilities = model.predict_proba(x)
    # The same split again: all of the generator's draws follow from the state.
    state = np.random.RandomState(0)
    state.randint(np.iinfo(np.int32).max)
    _, held = train_test_split(np.arange(200), test_size=0.4, random_state=state, stratify=y)
    loss = -np.log(probabilities[held, y[held]])
    weights = np.linspace(0.1, 1, 200)[held] if weighted else None
    np.testing.assert_allclose(np.average(loss, weights=weights), min(curve), rtol=1e-5)


def test_without_early_stopping_a_plateau_ends_the_training():
    x, y = blobs()
    model = quick(max_iter=1000, tol=0.05, n_iter_no_change=4).fit(x, y)
    curve = np.array(model.loss_curve_)
    assert model.n_iter_ == len(curve) < 1000
    best = np.minimum.accumulate(curve)
    assert (curve[-4:] > best[-5:-1] - 0.05).all()
    assert quick(max_iter=60, tol=None).fit(x, y).n_iter_ == 60


@pytest.mark.parametrize("kind", [NbbnClassifier, NbbnRegressor])
def test_part_after_part_is_a_training(kind):
    x, y = blobs()
    known = {"classes": [0, 1, 2]} if kind is NbbnClassifier else {}
    y = y if known else x[:, 0] * 3
    model = quick(kind)
    for epoch in range(40):
        for part in np.split(np.arange(300), 3):
            model.partial_fit(x[part], y[part], **(known if epoch == 0 else {}))
    assert model.score(x, y) > 0.8
    assert model.n_iter_ == 120
    # A single example, and after a copy by pickle, with the state of the optimizer.
    copied = pickle.loads(pickle.dumps(model))
    for each in (model, copied):
        each.partial_fit(x[:1], y[:1])
    np.testing.assert_array_equal(model.predict(x), copied.predict(x))


def test_what_partial_fit_refuses():
    x, y = blobs()
    model = quick()
    with pytest.raises(ArgumentError, match="needs classes"):
        model.partial_fit(x, y)
    model.partial_fit(x, y, [0, 1, 2])
    with pytest.raises(ArgumentError, match="not among"):
        model.partial_fit(x, y + 1)
    with pytest.raises(ArgumentError, match="must stay"):
        model.partial_fit(x, y, [0, 1])
    with pytest.raises(ArgumentError, match="that of before"):
        model.partial_fit(x, np.eye(3, dtype=int)[y])
    regressor = quick(NbbnRegressor).partial_fit(x, y)
    with pytest.raises(ArgumentError, match="2 columns, but it had 1"):
        regressor.partial_fit(x, x[:, :2])


def test_a_warm_start_goes_on_where_the_last_fit_ended():
    x, y = blobs()
    whole = quick(max_iter=20, tol=None).fit(x, y)
    halves = quick(max_iter=10, tol=None, warm_start=True).fit(x, y).fit(x, y)
    np.testing.assert_array_equal(whole.predict_proba(x), halves.predict_proba(x))
    assert halves.n_iter_ == 20
    cycle = quick(max_iter=10, learning_rate="one-cycle", warm_start=True)
    assert cycle.fit(x, y).fit(x, y).n_iter_ == 20


@pytest.mark.parametrize("kind", [NbbnClassifier, NbbnRegressor])
def test_the_same_state_gives_the_same_bits(kind):
    x, y = blobs()
    a, b = (quick(kind, dropout=0.2, random_state=3).fit(x, y).predict(x) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    other = quick(kind, dropout=0.2, random_state=4).fit(x, y)
    assert kind is NbbnClassifier or not np.array_equal(a, other.predict(x))


def test_float32_stays_float32_and_sparse_is_dense():
    x, y = blobs()
    single = quick().fit(x.astype(np.float32), y)
    assert single.model_.parameters()[0].dtype == np.float32
    x = np.where(np.abs(x) > 1, x, 0)
    weights = np.linspace(0.5, 1, len(x))
    for options, more in (({}, ()), ({}, (weights,)), ({"solver": "lbfgs", "max_iter": 9}, ())):
        dense, sparse = (
            quick(**options).fit(a, y, *more).predict_proba(a) for a in (x, SPARSE.csr_array(x))
        )
        np.testing.assert_allclose(dense, sparse, rtol=1e-6)


def test_frames_of_pandas_keep_the_names_of_their_columns():
    pandas = pytest.importorskip("pandas")
    x, y = blobs()
    frame = pandas.DataFrame(x, columns=list("abcde"))
    model = quick().fit(frame, pandas.Series(y).map({0: "x", 1: "y", 2: "z"}))
    assert model.feature_names_in_.tolist() == list("abcde")
    assert set(model.predict(frame)) == {"x", "y", "z"}
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"a": "f"}))


def test_pipelines_grids_and_clones():
    x, y = blobs()
    pipeline = make_pipeline(StandardScaler(), quick(max_iter=60))
    grid = GridSearchCV(
        pipeline, {"nbbnclassifier__hidden_layer_sizes": [8, (8, 4)],
                   "nbbnclassifier__dropout": [0.0, 0.1]}, cv=2,
    )  # fmt: skip
    assert grid.fit(x, y).best_score_ > 0.8
    assert cross_val_score(quick(NbbnRegressor), x, x[:, 0], cv=3).min() > 0.7
    model = quick(class_weight="balanced").fit(x, y)
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "model_")


def test_without_scikit_learn_the_import_says_what_to_install():
    script = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import nbbn\n"
        "try:\n    nbbn.sklearn\nexcept ImportError as error:\n    print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "pip install 'nbbn[sklearn]'" in found.stdout


def test_logistic_is_the_sigmoid():
    x, y = blobs()
    found = [quick(activation=a).fit(x, y).predict_proba(x) for a in ("logistic", "sigmoid")]
    np.testing.assert_array_equal(*found)


def test_verbose_prints_a_line_for_each_epoch(capsys):
    x, y = blobs()
    quick(max_iter=3, verbose=True, early_stopping=True).fit(x, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert "validation loss" in lines[0]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"activation": "identity"}, ArgumentError, "activation"),
        ({"solver": "newton"}, ArgumentError, "solver"),
        ({"learning_rate": "invscaling"}, ArgumentError, "learning_rate"),
        ({"batch_size": 0}, ArgumentError, "batch_size"),
        ({"batch_size": "all"}, DTypeError, "batch_size"),
        ({"max_iter": 0}, ArgumentError, "max_iter"),
        ({"n_iter_no_change": 0}, ArgumentError, "n_iter_no_change"),
        ({"tol": -1.0}, ArgumentError, "tol"),
        ({"dropout": 2.0}, ArgumentError, "dropout"),
        ({"batch_norm": "yes"}, DTypeError, "batch_norm"),
        ({"learning_rate_init": -1.0}, ArgumentError, "lr"),
        ({"early_stopping": True, "validation_fraction": 1.5}, ArgumentError, "fraction"),
        ({"hidden_layer_sizes": (3, 0)}, ArgumentError, "out_features"),
    ],
)
@pytest.mark.parametrize("kind", [NbbnClassifier, NbbnRegressor])
def test_settings_out_of_range(kind, options, error, words):
    x, y = blobs()
    with pytest.raises(error, match=words):
        kind().set_params(**options).fit(x, y)
