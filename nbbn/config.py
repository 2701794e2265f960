"""The configuration of a training: what `nbbn train` takes, and what a run remembers of itself."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    import numpy as np

    from .data import Batches, Dataset
    from .layers import Sequential
    from .optim import Optimizer

__all__ = ["Config", "Training"]

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine", "step", "constant")
STANDARDIZE = ("none", "global", "feature")
WATCH = ("loss", "accuracy")


class Training(NamedTuple):
    """What `nbbn.train.fit` needs.

    Attributes
    ----------
    config : Config
    data : Dataset
    model : Sequential
    batches : Batches
    validation, test : Batches or None
    optimizer : Optimizer
    """

    config: Config
    data: Dataset
    model: Sequential
    batches: Batches
    validation: Batches | None
    test: Batches | None
    optimizer: Optimizer

    def description(self) -> dict[str, Any]:
        """Collect what `nbbn.inference.Classifier` needs beside the weights.

        Returns
        -------
        dict
            For the `config` of `nbbn.checkpoint.Checkpoints`.
        """
        images = self.data.train_images
        return {
            "config": self.config.to_dict(),
            "shape": images.shape[1:],
            "dtype": str(images.dtype),
            "classes": self.model.parameters()[-1].size,
        }


def _between(low: float, high: float = math.inf) -> tuple[str, Callable[[Any], bool]]:
    below = "" if high == math.inf else f", below {high:g}"
    return f"a number of at least {low:g}{below}", lambda x: low <= x < high


def _is_source(value: Any) -> bool:
    return (
        isinstance(value, tuple | list)
        and len(value) in (1, 2)
        and all(isinstance(part, str) for part in value)
    )


_POSITIVE = ("a finite number above 0", lambda x: 0 < x < math.inf)
_COUNT = ("an integer of at least 1", lambda n: isinstance(n, int) and n >= 1)
_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "data": ("a tuple of one or two names or paths", _is_source),
    "validation": _between(0, 1),
    "standardize": (f"one of {', '.join(STANDARDIZE)}", STANDARDIZE.__contains__),
    "hidden": ("integers of at least 1", lambda ns: all(_COUNT[1](n) for n in ns)),
    "dropout": _between(0, 1),
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "optimizer": (f"one of {', '.join(OPTIMIZERS)}", OPTIMIZERS.__contains__),
    "lr": _POSITIVE,
    "schedule": (f"one of {', '.join(SCHEDULES)}", SCHEDULES.__contains__),
    "weight_decay": _between(0),
    "momentum": _between(0, 1),
    "watch": (f"one of {', '.join(WATCH)}", WATCH.__contains__),
    "until": ("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "patience": _COUNT,
    "seed": ("an integer of at least 0", lambda n: isinstance(n, int) and n >= 0),
}
_OPTIONAL = {"momentum", "until", "patience"}


@dataclass(frozen=True)
class Config:
    """All that decides what comes out of a training, given the same number of threads.

    Parameters
    ----------
    data : tuple of str
        What `nbbn.data.load` takes: a name, one path, or those of images and labels.
    validation : float
        Fraction of the training set to hold back for validation.
    standardize : {"none", "global", "feature"}
        Whether to standardize the images, by one mean and deviation or by those of each feature.
    hidden : tuple of int
        Widths of the hidden layers.
    batch_norm : bool
    dropout : float
        Probability of zeroing a hidden unit.
    epochs, batch_size : int
    optimizer : {"adam", "adamw", "sgd"}
    lr : float
        Highest learning rate.
    schedule : {"one-cycle", "cosine", "step", "constant"}
    weight_decay : float
    momentum : float, optional
        Of SGD, 0.9 by default.
    watch : {"loss", "accuracy"}
        What decides which epoch is the best: for `patience` and the best checkpoint.
    until : float, optional
        Stop at this accuracy.
    patience : int, optional
        Stop after so many epochs without a better one.
    seed : int
        Of weights, shuffling, dropout and the validation split.

    Raises
    ------
    ArgumentError
        A value that cannot be used; the message says which ones can.
    """

    data: tuple[str, ...] = ("mnist",)
    validation: float = 0.0
    standardize: str = "none"
    hidden: tuple[int, ...] = (256, 128)
    batch_norm: bool = True
    dropout: float = 0.0
    epochs: int = 5
    batch_size: int = 128
    optimizer: str = "adam"
    lr: float = 4e-3
    schedule: str = "one-cycle"
    weight_decay: float = 0.0
    momentum: float | None = None
    watch: str = "loss"
    until: float | None = None
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (expected, accepts) in _RULES.items():
            value = getattr(self, name)
            if value is None and name in _OPTIONAL:
                continue
            try:
                right = accepts(value)
            except TypeError:
                right = False
            if not right or (isinstance(value, bool) and name != "batch_norm"):
                raise ArgumentError(f"{name} must be {expected}, got {value!r}")
        if self.momentum is not None and self.optimizer != "sgd":
            raise ArgumentError(
                f"momentum belongs to the optimizer sgd, not to {self.optimizer}: leave it out"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Rebuild a configuration that went through JSON.

        Parameters
        ----------
        values : mapping
            What `to_dict` returned.

        Returns
        -------
        Config

        Raises
        ------
        CheckpointError
            It is not that of a training.
        """
        try:
            own: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            # Runs that do not say what they watch kept the epoch of the highest accuracy.
            return cls(**{"watch": "accuracy", **own})
        except (TypeError, ArgumentError) as error:
            raise CheckpointError(f"this is not the configuration of a training: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name.

        Returns
        -------
        dict
        """
        return dataclasses.asdict(self)

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """Divide the training set.

        Parameters
        ----------
        count : int
            Its examples.

        Returns
        -------
        (ndarray, ndarray) or (None, None)
            Those to train on and those held back for validation, if there are any.
        """
        from . import data

        return data.split(count, self.validation, self.seed) if self.validation else (None, None)

    def build_model(self, features: int, classes: int, rng: Any = None) -> Sequential:
        """Build the multi-layer perceptron.

        Parameters
        ----------
        features, classes : int
            Width of input and output.
        rng : Generator, int or None
            Source of the weights; `seed` by default.

        Returns
        -------
        Sequential
        """
        from .layers import mlp

        return mlp(
            (features, *self.hidden, classes),
            batch_norm=self.batch_norm,
            dropout=self.dropout,
            rng=self.seed if rng is None else rng,
        )

    def prepare(
        self, *, data_dir: str | os.PathLike[str] | None = None, device: str = "cpu"
    ) -> Training:
        """Load the data and build everything that `nbbn.train.fit` needs.

        Parameters
        ----------
        data_dir : path, optional
            Folder of a named data set, see `nbbn.data.load_mnist`.
        device : {"cpu", "cuda"}
            Where to train.

        Returns
        -------
        Training
        """
        import numpy as np

        from . import data, optim

        rng = np.random.default_rng(self.seed)
        found = data.load(*self.data, data_dir=data_dir)
        images, labels = found.train_images, found.train_labels
        features = math.prod(images.shape[1:])
        tops = [part.max() for part in (labels, found.test_labels) if part is not None]
        model = self.build_model(features, int(max(tops)) + 1, rng)
        model.to(device)
        rows, held = self.split(len(labels))
        options: dict[str, Any] = {"reuse": True, "device": device}
        if self.standardize != "none":
            per_feature = self.standardize == "feature"
            options["mean"], options["std"] = data.standardization(
                images, rows, per_feature=per_feature
            )
        batches = data.Batches(images, labels, self.batch_size, rng=rng, rows=rows, **options)
        options["shuffle"] = False
        validation = test = None
        if held is not None:
            validation = data.Batches(images, labels, 1000, rows=held, **options)
        if found.test_images is not None and found.test_labels is not None:
            test = data.Batches(found.test_images, found.test_labels, 1000, **options)
        rate = optim.SCHEDULES[self.schedule](self.lr, self.epochs * len(batches))
        own: dict[str, Any] = {"weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            own["momentum"] = 0.9 if self.momentum is None else self.momentum
        optimizer = optim.OPTIMIZERS[self.optimizer](model.parameters(), lr=rate, **own)
        return Training(self, found, model, batches, validation, test, optimizer)
