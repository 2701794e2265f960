"""The configuration of a training: what `nbbn train` takes, and what a run remembers of itself."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .._validation import (
    choice,
    instance,
    integer,
    mapping,
    positive,
    positives,
    real,
    switch,
)  # fmt: skip
from ..errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    import numpy as np

    from ..data import Batches, Dataset
    from ..distributed import Ranks
    from ..nn.layers import Sequential
    from ..optim import Optimizer

__all__ = ["Config", "Training"]

MODELS = ("mlp", "cnn")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine", "step", "constant")
STANDARDIZE = ("none", "global", "feature")
WATCH = ("loss", "accuracy")
# What the command line trains a cnn with where nothing else is asked for.
CNN: dict[str, Any] = {
    "hidden": (128,), "dropout": 0.3, "epochs": 8, "optimizer": "sgd", "lr": 0.1,
    "weight_decay": 5e-4,
}  # fmt: skip


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
        """Collect what `Classifier` needs beside the weights, for `Checkpoints.config`."""
        images = self.data.train_images
        return {
            "config": self.config.to_dict(),
            "shape": images.shape[1:],
            "dtype": str(images.dtype),
            "classes": self.model.parameters()[-1].size,
        }


def sources(value: Any, name: str) -> tuple[str, ...]:
    """Check names or paths of data, as `nbbn.data.load` takes them."""
    if not isinstance(value, tuple | list) or len(value) not in (1, 2):
        raise ArgumentError(f"{name} must be a tuple of one or two names or paths, got {value!r}")
    for part in value:
        instance(part, str, f"a part of {name}")
        if not part:
            raise ArgumentError(f"a part of {name} is empty, got {value!r}")
    return tuple(value)


def _one_of(allowed: tuple[str, ...]) -> Callable[[Any, str], Any]:
    return lambda value, name: choice(value, allowed, name)


_below_one = partial(real, least=0, below=1)
_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "data": sources,
    "validation": _below_one,
    "standardize": _one_of(STANDARDIZE),
    "model": _one_of(MODELS),
    "channels": positives,
    "hidden": positives,
    "batch_norm": switch,
    "sync": switch,
    "dropout": _below_one,
    "epochs": positive,
    "batch_size": positive,
    "optimizer": _one_of(OPTIMIZERS),
    "lr": partial(real, above=0),
    "schedule": _one_of(SCHEDULES),
    "weight_decay": partial(real, least=0),
    "momentum": _below_one,
    "watch": _one_of(WATCH),
    "until": partial(real, above=0, most=1),
    "patience": positive,
    "seed": partial(integer, least=0),
}
_OPTIONAL = {"momentum", "until", "patience"}


def check(name: str, value: Any, label: str) -> Any:
    """Check a setting of `Config`; errors call it `label`."""
    return _CHECKS[name](value, label)


@dataclass(frozen=True)
class Config:
    """All that decides what comes out of a training.

    Parameters
    ----------
    data : tuple of str
        What `nbbn.data.load` takes: a name, one path, or those of images and labels.
    validation : float
        Fraction of the training set to hold back for validation.
    standardize : {"none", "global", "feature"}
        Whether to standardize the images, by one mean and deviation or by those of each feature.
    model : {"mlp", "cnn"}
        What is trained: `nbbn.mlp` or `nbbn.cnn`.
    channels : tuple of int
        Channels in each stage of a cnn; an mlp has none.
    hidden : tuple of int
        Widths of the hidden layers.
    batch_norm : bool
    sync : bool
        Whether it normalizes over all ranks of a distributed run.
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
    ArgumentError, DTypeError
        A value, or one of a type, that cannot be used; the message says which ones can.
    """

    data: tuple[str, ...] = ("mnist",)
    validation: float = 0.0
    standardize: str = "none"
    model: str = "mlp"
    channels: tuple[int, ...] = (16, 32)
    hidden: tuple[int, ...] = (256, 128)
    batch_norm: bool = True
    sync: bool = True
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
        for name in _CHECKS:
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                # JSON knows Python's own numbers alone.
                object.__setattr__(self, name, check(name, value, name))
        if self.momentum is not None and self.optimizer != "sgd":
            raise ArgumentError(
                f"momentum belongs to the optimizer sgd, not to {self.optimizer}: leave it out"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Rebuild what `to_dict` returned, also through JSON, or raise a CheckpointError."""
        mapping(values, "values", "what to_dict returned")
        try:
            own: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            # Runs that do not say what they watch kept the epoch of the highest accuracy.
            return cls(**{"watch": "accuracy", **own})
        except (TypeError, ArgumentError) as error:
            raise CheckpointError(f"this is not the configuration of a training: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the values by name."""
        return dataclasses.asdict(self)

    def split(self, count: int) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
        """Divide a training set: rows to train on, and those held back, if there are any."""
        from .. import data

        return data.split(count, self.validation, self.seed) if self.validation else (None, None)

    def build_model(self, shape: tuple[int, ...], classes: int, rng: Any = None) -> Sequential:
        """Build the model for images of this shape; `seed` draws its weights unless `rng` does.

        The channels of an image are its last axis if that has 1, 3 or 4 of them, else its first.
        """
        from ..nn.models import cnn, mlp

        shape = positives(shape, "shape")
        options: dict[str, Any] = {
            "batch_norm": self.batch_norm,
            "dropout": self.dropout,
            "rng": self.seed if rng is None else rng,
        }
        if self.model == "mlp":
            return mlp((math.prod(shape), *self.hidden, classes), **options)
        axis = -1 if len(shape) == 3 and shape[-1] in (1, 3, 4) else 1
        return cnn(shape, classes, channels=self.channels, hidden=self.hidden, axis=axis, **options)

    def prepare(
        self,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        ranks: Ranks | None = None,
    ) -> Training:
        """Load the data, build all that `fit` needs.

        `data_dir` has the files of a named set; `ranks` divide every batch among themselves.
        """
        import numpy as np

        from .. import data, optim
        from ..nn.batchnorm import BatchNorm

        rng = np.random.default_rng(self.seed)
        found = data.load(*self.data, data_dir=data_dir)
        images, labels = found.train_images, found.train_labels
        tops = [part.max() for part in (labels, found.test_labels) if part is not None]
        model = self.build_model(images.shape[1:], int(max(tops)) + 1, rng)
        model.to(device)
        for layer in model.modules():
            if isinstance(layer, BatchNorm):
                layer.sync = self.sync and ranks is not None
        rows, held = self.split(len(labels))
        options: dict[str, Any] = {"reuse": True, "device": device, "ranks": ranks}
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
