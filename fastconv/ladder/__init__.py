"""From a dense layer to a convolution, one constraint at a time.

=========================  ======================================  =======================  ==========================
step                       weights                                 computed by              an image of h x w needs
=========================  ======================================  =======================  ==========================
dense                      ``W[i, j, k, l]``                       `dense2d`                ``(h*w)**2``
reindexed                  ``V[i, j, a, b] = W[i, j, i+a, j+b]``   `relative2d`             ``(h*w)**2``
local                      0 unless ``|a|, |b| <= delta``          `fastconv.local2d`       ``h*w * (2*delta + 1)**2``
translation-invariant      ``V[a, b]``                             `fastconv.conv2d`        ``(2*h - 1) * (2*w - 1)``
both                       both                                    `fastconv.conv2d`        ``(2*delta + 1)**2``
with channels              ``V[a, b, c, d]``                       `fastconv.conv2d`        ``(2*delta + 1)**2*ic*oc``
=========================  ======================================  =======================  ==========================

`steps` counts weights, operations and bytes of each for any size. `to_relative` and `to_absolute` turn W into V and
back, `to_local` keeps the offsets up to delta, and `unshare`, `expand_local` and `expand_kernel` write the weights of a
later step as those of an earlier one.
"""

from fastconv.ladder.counts import Step, parameters, steps
from fastconv.ladder.dense2d import dense2d, dense2d_grad_bias, dense2d_grad_input, dense2d_grad_weight
from fastconv.ladder.relative2d import (
    relative2d,
    relative2d_grad_bias,
    relative2d_grad_input,
    relative2d_grad_weight,
)
from fastconv.ladder.weights import (
    expand_kernel,
    expand_local,
    to_absolute,
    to_local,
    to_relative,
    unshare,
)

__all__ = [
    "Step",
    "dense2d",
    "dense2d_grad_bias",
    "dense2d_grad_input",
    "dense2d_grad_weight",
    "expand_kernel",
    "expand_local",
    "parameters",
    "relative2d",
    "relative2d_grad_bias",
    "relative2d_grad_input",
    "relative2d_grad_weight",
    "steps",
    "to_absolute",
    "to_local",
    "to_relative",
    "unshare",
]
