"""A small data set, and the command line as its users call it."""

from __future__ import annotations

import numpy as np

from nbbn.cli import main

SIDE, CLASSES = 4, 3
FLAGS = ("--hidden", "8", "--batch-size", "16", "--dropout", "0.2", "--seed", "1")


def digits(count, seed):
    """Bytes whose brightest corner is their label."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    images = rng.integers(0, 80, (count, SIDE, SIDE))
    images[np.arange(count), (labels > 0) * 3, (labels > 1) * 3] += 150
    return images.astype(np.uint8), labels


def call(capsys, *arguments):
    """Run a command; return its status, its lines of output and its errors."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    out, error = capsys.readouterr()
    return status, out.splitlines(), error
