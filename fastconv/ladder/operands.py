"""Errors about the arrays of the first two steps, before anything is computed."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv.operands import ArrayLike, array_argument, expect_shape, same_dtype


def images_argument(name: str, value: ArrayLike) -> np.ndarray:
    """One or several gray images."""
    array = array_argument(name, value)
    if array.ndim not in (2, 3) or 0 in array.shape[-2:]:
        raise ValueError(
            f"{name} must be gray images of shape (n, rows, columns) or (rows, columns), got {array.shape}"
        )
    return array


def weights_argument(name: str, value: ArrayLike) -> np.ndarray:
    """Weights from every pixel to every pixel."""
    array = array_argument(name, value)
    if array.ndim != 4:
        raise ValueError(f"{name} must have 4 axes (oh, ow, ih, iw), got shape {array.shape}")
    return array


def expect_image(name: str, array: np.ndarray, size: tuple[int, ...], why: str) -> None:
    """ValueError unless images have that size."""
    expect_shape(name, array, (*array.shape[:-2], *size), why)


def image_pair(grad_h: ArrayLike, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """As many output gradients as inputs, of one dtype."""
    grad_h, x = images_argument("grad_h", grad_h), images_argument("x", x)
    same_dtype("x", x, "grad_h", grad_h)
    if grad_h.shape[:-2] != x.shape[:-2]:
        raise ValueError(f"grad_h and x must have the same number of images, got shapes {grad_h.shape} and {x.shape}")
    return grad_h, x


def bias_image(bias: Any, name: str, weights: np.ndarray) -> np.ndarray | None:
    """A bias with a value for each output pixel, or None."""
    if bias is None:
        return None
    bias = array_argument("bias", bias)
    same_dtype("bias", bias, name, weights)
    expect_shape("bias", bias, weights.shape[:2], "one value for each output pixel")
    return bias
