"""A data set in the form of MNIST, small enough to be served, damaged and fetched often."""

from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np

from nbbn import data


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def random_bytes(seed: int, *shape: int, top: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape).astype(np.uint8)


# A data set in MNIST's form, small enough to be served, damaged and fetched many times.
SMALL = data.Dataset(
    random_bytes(1, 7, 28, 28),
    random_bytes(2, 7, top=10),
    random_bytes(3, 3, 28, 28),
    random_bytes(4, 3, top=10),
)
NAMES = [file.name for file in data.named.MNIST_FILES]
RAW = {name: idx(array) for name, array in zip(NAMES, SMALL, strict=True)}
PACKED = {name: gzip.compress(raw, mtime=0) for name, raw in RAW.items()}
FILES = tuple(
    data.chain.File(name, len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in RAW.items()
)
FIRST = NAMES[0]


def assert_small(found: data.Dataset) -> None:
    for got, expected in zip(found, SMALL, strict=True):
        assert got.dtype == np.uint8
        assert got.flags.writeable
        np.testing.assert_array_equal(got, expected)


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]
