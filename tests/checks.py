"""Assertions that several test modules share."""

import numpy as np


def assert_owned(result, dtype):
    """The result is a fresh, C-contiguous, writable array of that dtype in native byte order."""
    assert type(result) is np.ndarray
    assert result.dtype == np.dtype(dtype)
    assert result.flags.c_contiguous
    assert result.flags.writeable
    assert result.flags.owndata


def assert_same_bits(result, expected):
    """Equal shape, dtype and every bit, NaN and signed zeros included."""
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    assert result.tobytes() == expected.tobytes()
