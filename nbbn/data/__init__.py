"""Data sets from wherever they can be had, verified bit for bit, and shuffled batches of them.

Whatever the source of a named data set, SHA-256 decides. Nothing reaches a folder before it is
complete and verified.
"""

from .batches import Batches
from .idx import read_idx
from .named import Dataset, load_fashion_mnist, load_mnist
from .own import load
from .preparation import split, standardization

__all__ = [
    "Batches", "Dataset", "load", "load_fashion_mnist", "load_mnist", "read_idx", "split",
    "standardization",
]  # fmt: skip
