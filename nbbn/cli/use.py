"""`nbbn eval`, `nbbn predict` and `nbbn export`: what a checkpoint is for."""

from __future__ import annotations

import argparse
import io
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np

from .. import data
from .._validation import write_atomically
from ..errors import ArgumentError, DataError, NbbnError
from ..train import loop as train
from ..train import metrics
from ..train.inference import Classifier, read_images


def evaluate(arguments: argparse.Namespace) -> None:
    """Print loss and accuracy on what the model was not trained on."""
    classifier = Classifier.load(arguments.checkpoint)
    found = classifier.held_out(arguments.data, arguments.data_dir)
    if found is None:
        source = " ".join(arguments.data or classifier.config.data)
        raise DataError(f"{source} has no test set: name other data with --data")
    part, images, labels, rows = found
    batches = classifier.batches(images, labels, rows)
    result = train.evaluate(classifier.model, batches)
    if arguments.per_class:
        _print_classes(classifier, batches)
    numbers = {"accuracy": result.accuracy, "loss": result.loss, "examples": result.count}
    print(json.dumps({**numbers, "part": part}))


def _print_classes(classifier: Classifier, batches: data.Batches) -> None:
    """Print precision, recall and F1 of each class."""
    pairs = [(y, classifier.model(x).numpy().argmax(axis=1)) for x, y in batches]
    labels, predicted = map(np.concatenate, zip(*pairs, strict=True))
    print(f"{'class':>5}  precision  recall      f1  examples")
    for number, row in enumerate(zip(*metrics.class_scores(labels, predicted), strict=True)):
        precision, recall, f1, support = row
        print(f"{number:5}  {precision:9.4f}  {recall:.4f}  {f1:.4f}  {support:8,}")


def predict(arguments: argparse.Namespace) -> None:
    """Print a label for every image."""
    classifier = Classifier.load(arguments.checkpoint)
    for path in arguments.images:
        images = read_images(path)
        if arguments.invert:
            if images.dtype != np.uint8:
                raise ArgumentError(f"--invert takes images of bytes, {path} holds {images.dtype}")
            images = 255 - images
        single = images.shape == classifier.shape
        try:
            rows = classifier.probabilities(images)
        except NbbnError as error:
            raise type(error)(f"{path}: {error}") from None
        for number, row in enumerate(rows):
            label, probability = int(row.argmax()), float(row.max())
            if arguments.json:
                entry = {"file": str(path), "index": number, "label": label}
                print(json.dumps({**entry, "probability": probability}))
            else:
                name = path if single else f"{path}[{number}]"
                print(f"{name}  {label}  {probability:.1%}")


def export(arguments: argparse.Namespace) -> None:
    """Write the weights for other programs."""
    target = arguments.target
    if target.suffix not in (".onnx", ".safetensors", ".npz"):
        raise ArgumentError(f"can export to .onnx, .safetensors and .npz, got {target}")
    classifier = Classifier.load(arguments.checkpoint)
    try:
        _write(classifier, target)
    except OSError as error:
        raise ArgumentError(f"cannot write {target}: {error.strerror}") from None
    except ImportError as error:
        raise ArgumentError(str(error)) from None
    features = math.prod(classifier.shape)
    print(f"wrote {target}; its input is x (N, {features}) float32: {_scaling(classifier)}")


def _write(classifier: Classifier, target: Path) -> None:
    state = classifier.model.state_dict()
    if target.suffix == ".onnx":
        from ..export import onnx

        onnx.export(classifier.model, target)
    elif target.suffix == ".safetensors":
        from safetensors.numpy import save

        write_atomically(target, save(state))
    else:
        content = io.BytesIO()
        np.savez(content, **cast("dict[str, Any]", state))
        write_atomically(target, content.getvalue())


def _scaling(classifier: Classifier) -> str:
    """Say what an image goes through before it enters the network."""
    value = "bytes / 255" if classifier.dtype == np.uint8 else "values"
    if not np.any(classifier.mean) and np.all(np.equal(classifier.std, 1)):
        return value
    if np.ndim(classifier.mean):
        return f"({value} - mean) / std, training/batches/mean and std in the checkpoint"
    return f"({value} - {float(classifier.mean):.6g}) / {float(classifier.std):.6g}"
