"""Fast convolutions with gradients for NumPy arrays, compiled by Numba.

`conv2d` and its gradients take images as (n, rows, columns, channels) or, with ``layout="NCHW"``, (n, channels, rows,
columns). `plan_conv2d` says which algorithm runs and what it should cost. `dense` is the fully connected layer that a
convolution replaces, `local2d` the one whose weights are local and not yet shared, and `ladder` has every step between.
`nn` has what training needs beside them, `datasets` pictures to train on.
"""

from fastconv import datasets, ladder, nn
from fastconv.conv2d import (
    conv2d,
    conv2d_backward,
    conv2d_grad_bias,
    conv2d_grad_input,
    conv2d_grad_weight,
)
from fastconv.dense import dense, dense_grad_input, dense_grad_weight
from fastconv.local2d import local2d, local2d_grad_bias, local2d_grad_input, local2d_grad_weight
from fastconv.plan import conv2d_algorithms, plan_conv2d
from fastconv.prepare import prepare_conv2d

__version__ = "0.1.0"

__all__ = [
    "conv2d",
    "conv2d_algorithms",
    "conv2d_backward",
    "conv2d_grad_bias",
    "conv2d_grad_input",
    "conv2d_grad_weight",
    "datasets",
    "dense",
    "dense_grad_input",
    "dense_grad_weight",
    "ladder",
    "local2d",
    "local2d_grad_bias",
    "local2d_grad_input",
    "local2d_grad_weight",
    "nn",
    "plan_conv2d",
    "prepare_conv2d",
]
