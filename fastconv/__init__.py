"""Fast convolutions with gradients for NumPy arrays, compiled by Numba.

`conv2d` and its gradients take images as (n, rows, columns, channels) or, with ``layout="NCHW"``, (n, channels, rows,
columns). `plan_conv2d` says which algorithm runs and what it should cost; `dense` is the fully connected layer that a
convolution replaces. `convolve`, `correlate`, `convolve2d` and `correlate2d` are those of signal processing.
"""

from fastconv.conv2d import (
    conv2d,
    conv2d_backward,
    conv2d_grad_bias,
    conv2d_grad_input,
    conv2d_grad_weight,
)
from fastconv.dense import dense, dense_grad_input, dense_grad_weight
from fastconv.plan import conv2d_algorithms, plan_conv2d
from fastconv.prepare import prepare_conv2d
from fastconv.signal import convolve, convolve2d, correlate, correlate2d

__version__ = "0.1.0"

__all__ = [
    "conv2d",
    "conv2d_algorithms",
    "conv2d_backward",
    "conv2d_grad_bias",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "convolve",
    "convolve2d",
    "correlate",
    "correlate2d",
    "dense",
    "dense_grad_input",
    "dense_grad_weight",
    "plan_conv2d",
    "prepare_conv2d",
]
