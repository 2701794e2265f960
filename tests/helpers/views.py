"""The same values in other layouts of memory."""

import numpy as np


def sliced(array):
    """Every second entry of a larger array, along each axis."""
    poison = np.nan if array.dtype.kind == "f" else 77
    big = np.full([2 * n + 1 for n in array.shape], poison, array.dtype)
    view = big[(..., *(slice(1, None, 2) for _ in array.shape))]
    view[...] = array
    return view


def flipped(array):
    """Negative strides along each axis."""
    every = (..., *(slice(None, None, -1) for _ in array.shape))
    return np.array(array[every], order="C")[every]


def padded(array):
    """Contiguous rows of a wider array, as a slice of columns is."""
    big = np.full((*array.shape[:-1], array.shape[-1] + 3), np.nan, array.dtype)
    big[..., 1:-2] = array
    return big[..., 1:-2]


def rotated(array):
    """The memory order of channels last for an array whose channels come second."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def swapped_tail(array):
    """Memory order in which the last two axes changed places."""
    return np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2)


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def misaligned(array):
    memory = np.empty(array.nbytes + 1, np.uint8)
    view = np.frombuffer(memory.data, array.dtype, offset=1, count=array.size).reshape(array.shape)
    view[...] = array
    return view


def big_endian(array):
    return array.astype(array.dtype.newbyteorder(">"))


VIEWS = [sliced, flipped, padded, rotated, swapped_tail, np.asfortranarray, misaligned, np.array]
