"""An independent oracle for convolution and its gradients: plain NumPy, explicit zero padding, tap by tap.

Everything is computed in float64, or in longdouble where that is given, so integer-valued data give exact results.
Inside, arrays are NHWC (images) and HWIO (weights); the public functions turn NCHW and OIHW into these and back.
`CountingConv` does the same sums one scalar product at a time and counts them; the cost models and the faster functions
must agree.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np


def pair(value):
    """Give an int for both axes, or two values one for each."""
    return (value, value) if isinstance(value, (int, np.integer)) else tuple(value)


def span(kernel: int, dilation: int) -> int:
    """Input cells from the first tap of a window to its last."""
    return (kernel - 1) * dilation + 1


def resolve_padding(padding, input_size, kernel_size, stride, dilation):
    """Turn any padding form into ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        axes = zip(input_size, kernel_size, stride, dilation, strict=True)
        return tuple(_named_padding(padding, *axis) for axis in axes)
    return tuple(pair(along_axis) for along_axis in pair(padding))


def _named_padding(name: str, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    if name == "valid":
        return 0, 0
    if name == "full":
        return span(kernel, dilation) - 1, span(kernel, dilation) - 1
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + span(kernel, dilation) - size)
    smaller, larger = total // 2, total - total // 2
    return {"same": (smaller, larger), "same_lower": (larger, smaller)}[name]


def _wide(array):
    """The array in float64, or in longdouble if that is what it has."""
    return np.asarray(array, np.promote_types(np.asarray(array).dtype, np.float64))


def images_to_nhwc(images, layout):
    """Wide images as NHWC."""
    images = _wide(images)
    return images if layout == "NHWC" else images.transpose(0, 2, 3, 1)


def images_from_nhwc(images, layout):
    """NHWC images in the layout asked for."""
    return images if layout == "NHWC" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def weights_to_hwio(weights, layout):
    """Wide weights as HWIO, from the order that belongs to the layout."""
    weights = _wide(weights)
    return weights if layout == "NHWC" else weights.transpose(2, 3, 1, 0)


def weights_from_hwio(weights, layout):
    """HWIO weights in the order that belongs to the layout."""
    return weights if layout == "NHWC" else np.ascontiguousarray(weights.transpose(3, 2, 0, 1))


@dataclass(frozen=True)
class Geometry:
    """Where each window reads: sizes along (height, width), padding resolved to numbers."""

    input_size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    @classmethod
    def of(cls, input_size, kernel_size, stride=1, padding=0, dilation=1) -> Geometry:
        """Resolve the arguments as the public functions take them."""
        stride, dilation = pair(stride), pair(dilation)
        padding = resolve_padding(padding, input_size, kernel_size, stride, dilation)
        return cls(tuple(input_size), tuple(kernel_size), stride, padding, dilation)

    @property
    def padded_size(self) -> tuple[int, int]:
        """Image size with its padding."""
        return tuple(size + sum(pads) for size, pads in zip(self.input_size, self.padding, strict=True))

    @property
    def output_size(self) -> tuple[int, int]:
        """Number of windows along each axis."""
        return tuple(
            (padded - span(kernel, dilation)) // stride + 1
            for padded, kernel, stride, dilation in zip(
                self.padded_size, self.kernel_size, self.stride, self.dilation, strict=True
            )
        )

    @property
    def image(self) -> tuple[slice, slice]:
        """The image inside the padded image."""
        starts = (pads[0] for pads in self.padding)
        return tuple(slice(start, start + size) for start, size in zip(starts, self.input_size, strict=True))

    def taps(self):
        """Each tap (a, b) with the rows and columns of the padded image that the windows read through it."""
        for tap in itertools.product(*map(range, self.kernel_size)):
            axes = zip(tap, self.dilation, self.stride, self.output_size, strict=True)
            rows, columns = (slice(a * d, a * d + (o - 1) * s + 1, s) for a, d, s, o in axes)
            yield *tap, rows, columns

    def padded(self, images):
        """NHWC images with zeros around."""
        result = np.zeros((len(images), *self.padded_size, images.shape[3]), images.dtype)
        rows, columns = self.image
        result[:, rows, columns] = images
        return result


def _group_slices(channels: int, groups: int):
    size = channels // groups
    return [slice(g * size, (g + 1) * size) for g in range(groups)]


def conv2d(x, w, bias=None, *, stride=1, padding=0, dilation=1, groups=1, layout="NHWC"):
    """Forward convolution."""
    x, w = images_to_nhwc(x, layout), weights_to_hwio(w, layout)
    geometry = Geometry.of(x.shape[1:3], w.shape[:2], stride, padding, dilation)
    padded = geometry.padded(x)
    ic, oc = x.shape[3], w.shape[3]
    y = np.zeros((len(x), *geometry.output_size, oc), np.result_type(x, w))
    for a, b, rows, columns in geometry.taps():
        for inputs, outputs in zip(_group_slices(ic, groups), _group_slices(oc, groups), strict=True):
            y[..., outputs] += padded[:, rows, columns, inputs] @ w[a, b, :, outputs]
    if bias is not None:
        y += _wide(bias)
    return images_from_nhwc(y, layout)


def conv2d_grad_input(grad_y, w, input_shape, *, stride=1, padding=0, dilation=1, groups=1, layout="NHWC"):
    """Gradient with respect to x: every output gives its gradient back to the cells that it read."""
    grad_y, w = images_to_nhwc(grad_y, layout), weights_to_hwio(w, layout)
    n, first, second, third = input_shape
    ih, iw, ic = (first, second, third) if layout == "NHWC" else (second, third, first)
    geometry = Geometry.of((ih, iw), w.shape[:2], stride, padding, dilation)
    padded = np.zeros((n, *geometry.padded_size, ic), np.result_type(grad_y, w))
    for a, b, rows, columns in geometry.taps():
        for inputs, outputs in zip(_group_slices(ic, groups), _group_slices(w.shape[3], groups), strict=True):
            padded[:, rows, columns, inputs] += grad_y[..., outputs] @ w[a, b, :, outputs].T
    rows, columns = geometry.image
    return images_from_nhwc(padded[:, rows, columns], layout)


def conv2d_grad_weight(grad_y, x, kernel_size, *, stride=1, padding=0, dilation=1, groups=1, layout="NHWC"):
    """Gradient with respect to w: every tap gathers what it read times what came back."""
    grad_y, x = images_to_nhwc(grad_y, layout), images_to_nhwc(x, layout)
    geometry = Geometry.of(x.shape[1:3], pair(kernel_size), stride, padding, dilation)
    padded = geometry.padded(x)
    ic, oc = x.shape[3], grad_y.shape[3]
    grad_w = np.zeros((*geometry.kernel_size, ic // groups, oc), np.result_type(grad_y, x))
    for a, b, rows, columns in geometry.taps():
        for inputs, outputs in zip(_group_slices(ic, groups), _group_slices(oc, groups), strict=True):
            axes = [0, 1, 2]
            grad_w[a, b, :, outputs] = np.tensordot(
                padded[:, rows, columns, inputs], grad_y[..., outputs], (axes, axes)
            )
    return weights_from_hwio(grad_w, layout)


def conv2d_grad_bias(grad_y, *, layout="NHWC"):
    """Gradient with respect to the bias: the sum over everything but the channels."""
    return images_to_nhwc(grad_y, layout).sum(axis=(0, 1, 2))


@dataclass
class CountingConv:
    """The three sums of a small NHWC problem, product by product, each product counted.

    Those with the zeros of the padding count too, as the dense sum has them.
    """

    geometry: Geometry
    groups: int = 1
    multiplications: int = field(default=0, init=False)

    def _products(self, n: int, ic_per_group: int, oc: int):
        """Every (image, row, column, input channel in its group, output channel, a, b) of the sum."""
        oh, ow = self.geometry.output_size
        kh, kw = self.geometry.kernel_size
        yield from itertools.product(*map(range, (n, oh, ow, ic_per_group, oc, kh, kw)))

    def _read_at(self, i, j, a, b):
        (sh, sw), (dh, dw) = self.geometry.stride, self.geometry.dilation
        return i * sh + a * dh, j * sw + b * dw

    def _multiply(self, left, right):
        self.multiplications += 1
        return left * right

    def _input_channel(self, c, d, ic_per_group, oc):
        return d // (oc // self.groups) * ic_per_group + c

    def forward(self, x, w):
        """y, one product after another."""
        padded, (_, _, icg, oc) = self.geometry.padded(x), w.shape
        y = np.zeros((len(x), *self.geometry.output_size, oc))
        for image, i, j, c, d, a, b in self._products(len(x), icg, oc):
            row, column = self._read_at(i, j, a, b)
            channel = self._input_channel(c, d, icg, oc)
            y[image, i, j, d] += self._multiply(padded[image, row, column, channel], w[a, b, c, d])
        return y

    def grad_input(self, grad_y, w, ic):
        """dx, one product after another."""
        _, _, icg, oc = w.shape
        padded = np.zeros((len(grad_y), *self.geometry.padded_size, ic))
        for image, i, j, c, d, a, b in self._products(len(grad_y), icg, oc):
            row, column = self._read_at(i, j, a, b)
            channel = self._input_channel(c, d, icg, oc)
            padded[image, row, column, channel] += self._multiply(grad_y[image, i, j, d], w[a, b, c, d])
        rows, columns = self.geometry.image
        return padded[:, rows, columns]

    def grad_weight(self, grad_y, x):
        """dw, one product after another."""
        padded, icg, oc = self.geometry.padded(x), x.shape[3] // self.groups, grad_y.shape[3]
        grad_w = np.zeros((*self.geometry.kernel_size, icg, oc))
        for image, i, j, c, d, a, b in self._products(len(x), icg, oc):
            row, column = self._read_at(i, j, a, b)
            channel = self._input_channel(c, d, icg, oc)
            grad_w[a, b, c, d] += self._multiply(grad_y[image, i, j, d], padded[image, row, column, channel])
        return grad_w


def patch_matrix(x, geometry: Geometry):
    """Every patch of NHWC images written out as a row: the matrix that im2col multiplies."""
    padded = geometry.padded(np.asarray(x, np.float64))
    patches = [padded[:, rows, columns] for _, _, rows, columns in geometry.taps()]
    return np.stack(patches, axis=3).reshape(-1, len(patches) * x.shape[3])
