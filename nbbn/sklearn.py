"""Multi-layer perceptrons with batch normalization and dropout as scikit-learn estimators.

What `sklearn.neural_network` has too has its name here, so that a pipeline or a grid changes the
class alone. Needs ``nbbn[sklearn]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state, column_or_1d, compute_sample_weight
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError:
    raise ImportError(
        "nbbn.sklearn needs the package scikit-learn: pip install 'nbbn[sklearn]'"
    ) from None

from . import backend, functional, train
from ._validation import choice, positive, real, switch
from .autograd.tensor import Tensor, as_tensor
from .errors import ArgumentError
from .nn import losses
from .nn.batchnorm import BatchNorm
from .nn.layers import Sequential
from .nn.models import mlp
from .nn.module import Module
from .optim import OPTIMIZERS, SCHEDULES, Optimizer
from .train.callbacks import Callback, EarlyStopping, Run

__all__ = ["NbbnClassifier", "NbbnRegressor"]

# Examples whose outputs are computed at once in prediction.
_CHUNK = 1024


class _Rows:
    """Batches of some rows of an array or of a sparse matrix, in a new order each epoch.

    With weights, these are the last column of both x and y, and sparse rows become dense.
    """

    def __init__(
        self, x: Any, y: np.ndarray, weights: Any, rows: np.ndarray, size: int, rng: Any
    ) -> None:
        self.x, self.y, self.weights = x, y, weights
        self.rows, self.size, self.rng = rows, size, rng
        self.sparse = None if weights is not None else backend.as_csr(x)
        # All batches of a size have arrays of one shape: steps are replayed.
        self.room = None if self.sparse is None else self.sparse.fullest()

    def __iter__(self) -> Iterator[tuple[Any, np.ndarray]]:
        order = self.rows if self.rng is None else self.rng.permutation(self.rows)
        for start in range(0, len(order), self.size):
            rows = order[start : start + self.size]
            if self.sparse is not None and self.room is not None:
                yield self.sparse.take(rows).within(int(self.room[len(rows) - 1])), self.y[rows]
                continue
            x, y = _dense(self.x[rows]), self.y[rows]
            if self.weights is not None:
                column = self.weights[rows, None]
                x, y = np.hstack([x, column]), np.hstack([y, column])
            yield x, y


class _Weighted(Module):
    """A model whose BatchNorms take the last column of x for the weights of examples."""

    def __init__(self, model: Sequential) -> None:
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs."""
        y: Tensor = self.model(x[:, :-1], weights=x[:, -1].data)
        return y


class _WeightedLoss:
    """The mean of a loss over examples whose weights are the last column of y."""

    def __init__(self, loss: Any) -> None:
        self.loss = loss

    def __call__(self, output: Tensor, y: np.ndarray) -> Tensor:
        targets = as_tensor(y)
        weights = targets[:, -1]
        each = self.loss(output, targets[:, :-1], reduction="none")
        if each.ndim > 1:
            each = each.mean(axis=1)
        mean: Tensor = (each * weights).sum() / weights.sum()
        return mean


class _Plateau(Callback):
    """Stop when the training loss has not fallen by `tol` for some epochs."""

    def __init__(self, tol: float, patience: int) -> None:
        self.tol, self.patience = tol, patience
        self.best, self.since = np.inf, 0

    def epoch(self, run: Run, result: Any) -> None:
        """Count the epochs since the last improvement."""
        self.since = self.since + 1 if result.loss > self.best - self.tol else 0
        self.best = min(self.best, result.loss)
        if self.since >= self.patience:
            run.stop("the training loss falls no more")


class _Lines(Callback):
    """Print a line for each epoch."""

    def epoch(self, run: Run, result: Any) -> None:
        """Print it."""
        held = result.validation
        print(
            f"epoch {result.epoch}  loss {result.loss:.6g}"
            + (f"  validation loss {held.loss:.6g}" if held else "")
        )


class _Later:
    """A schedule that begins at another step than 0."""

    def __init__(self, schedule: Any, start: int) -> None:
        self.schedule, self.start = schedule, start

    def __call__(self, step: int) -> float:
        return float(self.schedule(step - self.start))


def _takes_parts(estimator: Any) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError("lbfgs needs all examples at once: use fit, or another solver")
    return True


@dataclass(eq=False, repr=False)
class _Perceptron(BaseEstimator):  # type: ignore[misc]
    """What both estimators share."""

    hidden_layer_sizes: int | Sequence[int] = (100,)
    activation: str = "relu"
    _: KW_ONLY
    batch_norm: bool = True
    dropout: float = 0.0
    solver: str = "adam"
    weight_decay: float = 0.0
    batch_size: int | str = "auto"
    learning_rate: str = "constant"
    learning_rate_init: float = 1e-3
    max_iter: int = 200
    shuffle: bool = True
    random_state: Any = None
    tol: float | None = 1e-4
    verbose: bool = False
    warm_start: bool = False
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 10

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)
            Trained in float32 if it is float32, else in float64. A sparse matrix becomes dense
            only with weights, and then batch by batch.
        y : array-like, shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array-like, shape (n_samples,), optional
            Weights in the loss and in the statistics of batch normalization: an example of weight
            2 counts as two, one of weight 0 as none.

        Returns
        -------
        self
        """
        again = switch(self.warm_start, "warm_start") and hasattr(self, "model_")
        return self._fit(X, y, sample_weight, first=not again, whole=True)

    # -------------------------------------------------------------- what the two differ in

    def _targets(self, y: np.ndarray, weights: Any, first: bool, classes: Any) -> np.ndarray:
        """Check targets and return what the loss takes; learn classes or scale if `first`."""
        raise NotImplementedError

    def _loss(self) -> Any:
        raise NotImplementedError

    # ------------------------------------------------------------------------------ training

    def _fit(
        self, x: Any, y: Any, weights: Any, *, first: bool, whole: bool, classes: Any = None
    ) -> Any:
        """Train all epochs or one, with a new model if it is the `first` time."""
        dtype: Any = (np.float64, np.float32)
        # Line searches need all digits.
        dtype = np.float64 if self.solver == "lbfgs" else dtype
        dtype = dtype if first else self.model_.parameters()[0].dtype
        x, y = validate_data(
            self, x, y, reset=first, accept_sparse="csr", multi_output=True,
            y_numeric=isinstance(self, RegressorMixin), dtype=dtype,
        )  # fmt: skip
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        weights = self._weights(x, y, weights)
        if weights is not None:
            kept = np.flatnonzero(weights)
            if not kept.size:
                raise ArgumentError("all sample weights are 0: give some examples a positive one")
            # BatchNorm would normalize examples of weight 0 too, and refuse a batch of them.
            x, y, weights = x[kept], y[kept], weights[kept]
        y = self._targets(y, weights, first, classes)
        y = y if y.dtype.kind == "i" else y.astype(x.dtype)
        if first:
            self._begin(x)
        self._train(x, y, weights, whole)
        return self

    def _weights(self, x: Any, y: np.ndarray, weights: Any) -> Any:
        if weights is None:
            return None
        return _check_sample_weight(weights, x, dtype=x.dtype, ensure_non_negative=True)

    def _begin(self, x: Any) -> None:
        """Make the model and its generators."""
        self._random = check_random_state(self.random_state)
        self._rng = np.random.default_rng(self._random.randint(np.iinfo(np.int32).max))
        hidden = self.hidden_layer_sizes
        hidden = hidden if isinstance(hidden, Iterable) else (hidden,)
        self.model_ = mlp(
            (x.shape[1], *hidden, self._outputs), batch_norm=self.batch_norm, rng=self._rng,
            activation="sigmoid" if self.activation == "logistic" else self.activation,
            dropout=self.dropout, dtype=x.dtype,
        )  # fmt: skip
        for layer in self.model_:
            if isinstance(layer, BatchNorm):
                # Averages over batches alone, as repeated examples would give; single rows pass.
                layer.zero_debias, layer.unbiased, layer.on_single = True, False, "eval"
        self._state: Any = None
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []

    def _optimizer(self) -> Optimizer:
        """Make the optimizer again, with the state that the last training left."""
        make = OPTIMIZERS[self.solver]
        optimizer = make(
            self.model_.parameters(), lr=self.learning_rate_init, weight_decay=self.weight_decay,
            **({"momentum": 0.9} if self.solver == "sgd" else {}),
        )  # fmt: skip
        if self._state is not None:
            optimizer.load_state_dict(self._state)
        return optimizer

    def _train(self, x: Any, y: np.ndarray, weights: np.ndarray | None, whole: bool) -> None:
        epochs = positive(self.max_iter, "max_iter") if whole else 1
        patience = positive(self.n_iter_no_change, "n_iter_no_change")
        name = choice(self.learning_rate, tuple(SCHEDULES), "learning_rate")
        shuffle = self._rng if switch(self.shuffle, "shuffle") else None
        size = 200 if self.batch_size == "auto" else positive(self.batch_size, "batch_size")
        labels = y if y.dtype.kind == "i" else None
        model: Any = self.model_
        loss = self._loss()
        if weights is not None:
            model, loss = _Weighted(model), _WeightedLoss(loss)
            y = y if labels is None else np.eye(self._outputs, dtype=x.dtype)[y]
        if choice(self.solver, ("lbfgs", *OPTIMIZERS), "solver") == "lbfgs":
            self._minimize(model, loss, _Rows(x, y, weights, np.arange(len(y)), len(y), None))
            return
        optimizer = self._optimizer()
        rows, held = np.arange(len(y)), None
        callbacks: list[Callback] = [_Lines()] if switch(self.verbose, "verbose") else []
        if whole and switch(self.early_stopping, "early_stopping"):
            fraction = real(self.validation_fraction, "validation_fraction", above=0, below=1)
            rows, others = train_test_split(
                rows, test_size=fraction, random_state=self._random, stratify=labels
            )
            held = _Rows(x, y, weights, others, size, None)
            callbacks.append(EarlyStopping(patience))
        elif whole and self.tol is not None and name == "constant":
            callbacks.append(_Plateau(real(self.tol, "tol", least=0), patience))
        if whole and name != "constant":
            total = epochs * -(-len(rows) // size)
            schedule: Any = SCHEDULES[name](self.learning_rate_init, total)
            optimizer.lr = _Later(schedule, optimizer.step_count)
        history = train.fit(
            model, _Rows(x, y, weights, rows, size, shuffle), optimizer,  # type: ignore[arg-type]
            epochs=epochs, loss=loss, validation=held, restore_best=held is not None,  # type: ignore[arg-type]
            callbacks=callbacks,
        )  # fmt: skip
        self.model_.eval()
        self._state = optimizer.state_dict()
        self.n_iter_ += len(history)
        self.loss_curve_ += [epoch.loss for epoch in history]
        self.loss_ = history[-1].loss
        if held is not None:
            self.validation_loss_curve_ = [epoch.watched.loss for epoch in history if epoch.watched]

    def _minimize(self, model: Any, loss: Any, whole: _Rows) -> None:
        """Train on all examples at once."""
        ((x, y),) = whole
        if len(x) == 1 and self.batch_norm:
            raise ArgumentError("1 sample has no variance to normalize with: give several")
        options: dict[str, Any] = {"maxiter": positive(self.max_iter, "max_iter")}
        if self.tol is not None:
            options["gtol"] = real(self.tol, "tol", least=0)
        found = train.minimize(
            model, loss, x, y, weight_decay=self.weight_decay, options=options,
            callback=(lambda own: print(f"iteration {own.iteration}  loss {own.loss:.6g}"))
            if switch(self.verbose, "verbose") else None,
        )  # fmt: skip
        self.model_.eval()
        self.n_iter_ += len(found.history)
        self.loss_curve_ += [own.loss for own in found.history]
        self.loss_ = found.loss

    # ---------------------------------------------------------------------------- prediction

    def _forward(self, x: Any) -> np.ndarray:
        """Outputs of the model in evaluation mode, in float64."""
        check_is_fitted(self)
        dtype = self.model_.parameters()[0].dtype
        x = validate_data(self, x, reset=False, accept_sparse="csr", dtype=dtype)
        parts = (x[i : i + _CHUNK] for i in range(0, x.shape[0], _CHUNK))
        return np.concatenate([self.model_(part).numpy() for part in parts]).astype(np.float64)


@dataclass(eq=False, repr=False, kw_only=True)
class NbbnClassifier(ClassifierMixin, _Perceptron):  # type: ignore[misc]
    """A classifier by a multi-layer perceptron with batch normalization and dropout.

    It minimizes the cross-entropy of a softmax; where `y` is an indicator matrix of several labels,
    that of a sigmoid for each. Features should have one scale: put a StandardScaler in front.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        Widths of the hidden layers.
    activation : {"relu", "sigmoid", "tanh"}, default "relu"
        "logistic", scikit-learn's name, is the sigmoid.
    batch_norm : bool, default True
        Whether to normalize batches in front of each activation.
    dropout : float, default 0
        Probability of zeroing a hidden unit in training.
    solver : {"adam", "adamw", "sgd", "lbfgs"}, default "adam"
        The optimizer; SGD has a momentum of 0.9. "lbfgs", for small sets, is
        `nbbn.train.minimize` over all examples at once, in float64: without batches, early
        stopping, schedule, dropout and `partial_fit`. `tol` is then that of the gradient.
    weight_decay : float, default 0
        As the optimizer, or `minimize`, means it.
    batch_size : int or "auto", default "auto"
        Rows per step; 200 by default. If there are fewer, all.
    learning_rate : {"constant", "one-cycle", "cosine", "step"}, default "constant"
        The schedule over all `max_iter` epochs of `fit`; that of `partial_fit` is constant.
    learning_rate_init : float, default 1e-3
        Highest learning rate.
    max_iter : int, default 200
        Epochs at most.
    shuffle : bool, default True
        Whether each epoch has an order of its own.
    random_state : int, RandomState or None
        Decides weights, orders, dropout and the validation split: the same state, the same bits.
    tol : float or None, default 1e-4
        With a constant learning rate, training ends when the training loss has not fallen by it
        for `n_iter_no_change` epochs; None goes on.
    verbose : bool, default False
        Whether to print a line for each epoch.
    warm_start : bool, default False
        Whether `fit` goes on from where the last one ended.
    early_stopping : bool, default False
        Whether to hold back a part of the examples, to end when the loss on them has not fallen
        for `n_iter_no_change` epochs, and to keep the weights of the best epoch.
    validation_fraction : float, default 0.1
        That part.
    n_iter_no_change : int, default 10
    class_weight : dict, "balanced" or None
        Factors of the examples' weights, as scikit-learn's classifiers take them.

    Attributes
    ----------
    classes_ : ndarray
        The labels, sorted.
    model_ : nbbn.Sequential
        The trained model, in evaluation mode: it can be exported and folded as any other.
    n_iter_ : int
        Epochs made.
    loss_, loss_curve_ : float, list of float
        The last training loss, and that of each epoch.
    validation_loss_curve_ : list of float
        With `early_stopping`.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        If the columns of `X` had names.
    """

    class_weight: Any = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    @available_if(_takes_parts)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Make one epoch of steps with these examples, at a constant learning rate.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array-like, optional
            All classes that will come; needed by the first call.

        Returns
        -------
        self
        """
        first = not hasattr(self, "model_")
        if first and classes is None:
            raise ArgumentError("the first call of partial_fit needs classes, all that will come")
        if classes is not None:
            classes = np.unique(classes)
            if not first and not np.array_equal(classes, self.classes_):
                raise ArgumentError(f"classes must stay {self.classes_}, got {classes}")
        if isinstance(self.class_weight, str):
            raise ArgumentError("partial_fit cannot balance classes that it has not seen")
        return self._fit(X, y, sample_weight, first=first, whole=False, classes=classes)

    def _weights(self, x: Any, y: np.ndarray, weights: Any) -> Any:
        found = super()._weights(x, y, weights)
        if self.class_weight is None:
            return found
        factors = compute_sample_weight(self.class_weight, y).astype(x.dtype)
        return factors if found is None else found * factors

    def _targets(self, y: np.ndarray, weights: Any, first: bool, classes: Any) -> np.ndarray:
        check_classification_targets(y)
        several = y.ndim == 2
        if several and type_of_target(y) != "multilabel-indicator":
            raise ArgumentError("y of several columns must hold 0 and 1, a column for each label")
        if first:
            own = np.arange(y.shape[1]) if several else np.unique(y)
            self.classes_ = own if classes is None else classes
            self._outputs, self._several = len(self.classes_), several
        if several != self._several or (several and y.shape[1] != self._outputs):
            raise ArgumentError(f"y has shape {y.shape}, which is not that of before")
        if several:
            return _dense(y).astype(np.float64)
        unknown = np.setdiff1d(y, self.classes_)
        if unknown.size:
            raise ArgumentError(f"y holds {unknown[0]!r}, which is not among {self.classes_}")
        return np.searchsorted(self.classes_, y)

    def _loss(self) -> Any:
        return losses.binary_cross_entropy if self._several else losses.cross_entropy

    def predict_proba(self, X: Any) -> np.ndarray:
        """Compute the probability of each class, or of each label, for each example.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        outputs = self._forward(X)
        return functional.sigmoid(outputs) if self._several else functional.softmax(outputs)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Compute the logarithms of `predict_proba`, which do not underflow for classes.

        Otherwise as `predict_proba`.
        """
        outputs = self._forward(X)
        if self._several:
            return np.asarray(-np.logaddexp(0, -outputs))
        return functional.log_softmax(outputs)

    def predict(self, X: Any) -> np.ndarray:
        """Predict the most probable class, or the labels that are more probable than not.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)

        Returns
        -------
        ndarray, shape (n_samples,) or (n_samples, n_labels)
        """
        outputs = self._forward(X)
        if self._several:
            return (outputs > 0).astype(np.int64)
        found: np.ndarray = self.classes_[outputs.argmax(axis=1)]
        return found


class NbbnRegressor(RegressorMixin, _Perceptron):  # type: ignore[misc]
    """A regression by a multi-layer perceptron with batch normalization and dropout.

    It minimizes the squared error of targets that it scales itself, each column to mean 0 and
    standard deviation 1; the first call of `partial_fit` decides how. Several columns of `y` are
    several outputs. Otherwise as `NbbnClassifier`, but without classes.

    Attributes
    ----------
    model_ : nbbn.Sequential
        The trained model, in evaluation mode; its outputs are scaled.
    n_iter_, loss_, loss_curve_, validation_loss_curve_, n_features_in_, feature_names_in_
        As of `NbbnClassifier`; losses are of scaled targets.
    """

    @available_if(_takes_parts)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Make one epoch of steps with these examples, at a constant learning rate.

        Otherwise as `fit`.
        """
        first = not hasattr(self, "model_")
        return self._fit(X, y, sample_weight, first=first, whole=False)

    def _targets(self, y: np.ndarray, weights: Any, first: bool, classes: Any) -> np.ndarray:
        columns = y.reshape(len(y), -1).astype(np.float64)
        if first:
            self._one = y.ndim == 1
            self._outputs = columns.shape[1]
            self._mean = np.average(columns, axis=0, weights=weights)
            deviation = np.sqrt(np.average((columns - self._mean) ** 2, axis=0, weights=weights))
            self._scale = np.where(deviation > 0, deviation, 1.0)
        if columns.shape[1] != self._outputs:
            raise ArgumentError(f"y has {columns.shape[1]} columns, but it had {self._outputs}")
        return (columns - self._mean) / self._scale

    def _loss(self) -> Any:
        return losses.mse

    def predict(self, X: Any) -> np.ndarray:
        """Predict the targets.

        Parameters
        ----------
        X : array-like or sparse matrix, shape (n_samples, n_features)

        Returns
        -------
        ndarray of float64, shape (n_samples,) or (n_samples, n_outputs)
        """
        found: np.ndarray = self._forward(X) * self._scale + self._mean
        return found[:, 0] if self._one else found


def _dense(x: Any) -> np.ndarray:
    """Return rows of an array or of a sparse matrix as an array."""
    rows: np.ndarray = x if isinstance(x, np.ndarray) else x.toarray()
    return rows
