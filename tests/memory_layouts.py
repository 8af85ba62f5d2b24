"""One array in every way that NumPy can lay it out in memory."""

import numpy as np


def reversed_axes(array):
    backwards = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[backwards])[backwards]


def every_second(array):
    spread = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    spread[..., ::2] = array
    return spread[..., ::2]


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def misaligned(array):
    result = np.ndarray(array.shape, array.dtype, bytearray(array.nbytes + 1), offset=1)
    result[...] = array
    return result


def other_layout(array):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


MEMORY_LAYOUTS = {
    "reversed": reversed_axes,
    "every-second": every_second,
    "fortran": np.asfortranarray,
    "other-layout": other_layout,
    "read-only": read_only,
    "misaligned": misaligned,
    "byte-swapped": lambda array: array.astype(array.dtype.newbyteorder()),
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
    "broadcast-channels": lambda array: np.broadcast_to(array[..., :1], array.shape),
}
