"""Using a trained classifier: from a checkpoint of `nbbn train` to labels of new images."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import data, functional
from .._validation import as_array, as_path, data_type, instance, positives
from ..data import Batches, read_idx
from ..data._checks import check_finite, check_rows, finite
from ..data.own import read_npy
from ..errors import ArgumentError, CheckpointError, DataError, DTypeError, ShapeError
from ..nn.layers import Module, Sequential
from . import checkpoint
from .config import Config, sources

__all__ = ["Classifier", "HeldOut", "read_images"]


class HeldOut(NamedTuple):
    """Examples that a model was not trained on.

    Attributes
    ----------
    part : {"test", "validation"}
    images : ndarray, shape (N, ...)
    labels : ndarray of int, shape (N,)
    rows : ndarray of int or None
        Which of them are held out; None for all.
    """

    part: str
    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | None


class Classifier:
    """A trained model with what it needs to take raw images.

    Parameters
    ----------
    model : Sequential
        In evaluation mode from now on.
    config : Config
        What it was trained with.
    shape : tuple of int
        Shape of one image.
    dtype : dtype_like
        Type of the images that it was trained on.
    mean, std : float or ndarray of shape (F,)
        Their standardization.

    Attributes
    ----------
    model, config, shape, dtype, mean, std
        As given.
    """

    def __init__(
        self,
        model: Sequential,
        config: Config,
        shape: tuple[int, ...],
        dtype: Any = np.uint8,
        mean: float | np.ndarray = 0.0,
        std: float | np.ndarray = 1.0,
    ) -> None:
        instance(model, Module, "model")
        instance(config, Config, "config")
        self.shape = positives(shape, "shape")
        features = math.prod(self.shape)
        self.dtype = data_type(dtype, "uint8", "float32", "float64")
        self.mean, self.std = finite(mean, "mean", features), finite(std, "std", features)
        model.eval()
        self.model, self.config = model, config

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Classifier:
        """Read a checkpoint of `nbbn train`; of a folder, the best one or else the latest.

        A CheckpointError if it is missing, damaged or not of a training by the command line.
        """
        best = as_path(path, "path") / "best.safetensors"
        found = checkpoint.load(best if best.exists() else path)
        saved, own = found.config, found.batches
        if not saved.keys() >= {"config", "shape", "classes", "dtype"} or "mean" not in own:
            raise CheckpointError(
                f"{found.path} was not saved by nbbn train: build its model yourself and use "
                "nbbn.checkpoint.restore"
            )
        config, shape = Config.from_dict(saved["config"]), tuple(saved["shape"])
        model = config.build_model(shape, saved["classes"])
        checkpoint.restore(found, model)
        return cls(model, config, shape, saved["dtype"], own["mean"], own["std"])

    def batches(
        self, images: np.ndarray, labels: np.ndarray | None = None, rows: np.ndarray | None = None
    ) -> Batches:
        """Standardize images as in training, and leave them in order; labels are 0 by default.

        Parameters
        ----------
        images : ndarray, shape (N, ...) or that of one image
            Of the type that the model was trained on, or of bytes.
        labels : ndarray of int, shape (N,), optional
        rows : ndarray of int, optional
            Use these images only. All by default.

        Raises
        ------
        ShapeError, DTypeError
            Other images than the model was trained on.
        DataError
            Images with NaN or Inf.
        """
        images = as_array(images, "images")
        if images.shape == self.shape:
            images = images[np.newaxis]
        if images.shape[1:] != self.shape:
            raise ShapeError(
                f"this model takes images of shape {self.shape}, one or several, got an array "
                f"of shape {images.shape}"
            )
        if images.dtype != np.uint8 and self.dtype == np.uint8:
            raise DTypeError(f"this model was trained on bytes (uint8), got {images.dtype}")
        rows = None if rows is None else check_rows(rows, len(images))
        check_finite(images, rows)
        labels = np.zeros(len(images), np.int64) if labels is None else labels
        return Batches(images, labels, 1000, shuffle=False, mean=self.mean, std=self.std, rows=rows)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Compute how likely each class is for each image: rows (N, classes) that sum to 1.

        `batches` says what images may be. Outputs that are not finite raise a DataError.
        """
        with np.errstate(all="ignore"):
            outputs = np.concatenate([self.model(x).numpy() for x, _ in self.batches(images)])
        bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
        if bad.size:
            raise DataError(
                f"the model's outputs for {bad.size} of {len(outputs)} images are not finite "
                f"(number {bad[0]} is the first, counted from 0): their values are too large, "
                "scale them as in training"
            )
        return functional.softmax(outputs)

    def held_out(
        self, source: Sequence[str] | None = None, data_dir: str | os.PathLike[str] | None = None
    ) -> HeldOut | None:
        """Load what the model was not trained on: the test set, or else the validation split.

        Parameters
        ----------
        source : sequence of str, optional
            What `nbbn.data.load` takes; by default the data that the model was trained on. Of
            other data only a test set will do.
        data_dir : path, optional
            Folder of a named data set, see `nbbn.data.load_mnist`.

        Returns
        -------
        HeldOut or None
            None if there is neither. A DataError if the data cannot be loaded.
        """
        name = self.config.data if source is None else sources(source, "source")
        found = data.load(*name, data_dir=data_dir)
        if found.test_images is not None and found.test_labels is not None:
            return HeldOut("test", found.test_images, found.test_labels, None)
        if source is not None or not self.config.validation:
            return None
        _, rows = self.config.split(len(found.train_labels))
        return HeldOut("validation", found.train_images, found.train_labels, rows)


def read_images(path: str | os.PathLike[str]) -> np.ndarray:
    """Read images to classify.

    Parameters
    ----------
    path : path
        ``.npy``, IDX, or a picture such as PNG, which is turned into shades of grey and needs the
        extra ``nbbn[image]``.

    Returns
    -------
    ndarray
        Shape (N, ...) or, of a picture, (height, width).

    Raises
    ------
    DataError
        It cannot be read.
    ArgumentError
        Pillow is needed and not installed.
    """
    path = as_path(path, "path")
    if path.is_dir():
        raise DataError(f"{path} is a folder: name the files of images in it")
    if not path.is_file():
        raise DataError(f"there is no file {path}")
    if path.suffix == ".npy":
        return read_npy(path)
    with open(path, "rb") as stream:
        start = stream.read(3)
    if start[:2] == b"\x1f\x8b" or start == b"\0\0\x08":
        return read_idx(path)
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ArgumentError(
            f"{path} needs the package pillow to be read: pip install 'nbbn[image]'"
        ) from None
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L"))
    except UnidentifiedImageError:
        raise DataError(
            f"{path} holds no images: expected an array in a .npy or IDX file, or a picture such "
            "as PNG"
        ) from None
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a picture that can be read: {error}") from error
