"""What each step of the ladder costs for an image of any size: exact integers, nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fastconv.problem import check_pair, check_whole


@dataclass(frozen=True)
class Step:
    """One step of the ladder: a layer on one gray image, whose output is as large as the image.

    Attributes
    ----------
    name : str
        "units", "dense", "reindexed", "local", "invariant", "conv" or "channels".
    layer : str
        The layer in words, with its size.
    formula : str
        Its sum.
    parameters : int
        Trainable weights, biases not counted.
    biases : int
        Trainable biases.
    flops : int
        Operations of the sum, one multiplication and one addition for each product.
    elements : int
        Numbers that must move at least: input, weights and output once.
    """

    name: str
    layer: str
    formula: str
    parameters: int
    biases: int
    flops: int
    elements: int


def steps(
    input_size: int | Sequence[int], *, units: int = 1000, delta: int = 2, channels: int = 16
) -> tuple[Step, ...]:  # fmt: skip
    """Count weights, operations and numbers moved of every step, for one gray image.

    Parameters
    ----------
    input_size : int or (rows, columns)
        Size of the image; an integer stands for a square.
    units : int, default 1000
        Hidden units of the first step, the dense layer whose output is no image.
    delta : int, default 2
        Reach of a local layer: its windows have 2*delta + 1 rows and columns.
    channels : int, default 16
        Output channels of the last step.

    Returns
    -------
    tuple of Step
        In the order of the ladder.

    Raises
    ------
    ValueError, TypeError
        If a size is not a positive integer (delta: not a negative one).

    Notes
    -----
    A window at the border counts in full, as in `plan_conv2d`. The translation-invariant layer counts the products
    of pixels that exist, (rows*columns)^2: sharing weights saves memory, not operations.

    Examples
    --------
    >>> from fastconv import ladder
    >>> for step in ladder.steps(1000):
    ...     print(f"{step.name:<10}{step.parameters:>20,}{step.flops:>24,}")
    units            1,000,000,000           2,000,000,000
    dense        1,000,000,000,000       2,000,000,000,000
    reindexed    1,000,000,000,000       2,000,000,000,000
    local               25,000,000              50,000,000
    invariant            3,996,001       2,000,000,000,000
    conv                        25              50,000,000
    channels                   400             800,000,000
    """
    rows, columns = check_pair("input_size", input_size)
    units, channels = check_whole("units", units, 1), check_whole("channels", channels, 1)
    side = 2 * check_whole("delta", delta, 0) + 1
    near = f"the same, -{delta} <= a, b <= {delta}"
    pixels, taps, reach = rows * columns, side**2, (2 * rows - 1, 2 * columns - 1)
    return (
        _step("units", f"dense, {units:,} units", "H[u] = sum_kl W[u,k,l] X[k,l]", pixels * units, units, pixels,
              pixels * units),
        _step("dense", "dense, image to image", "H[i,j] = sum_kl W[i,j,k,l] X[k,l]", pixels**2, pixels, pixels,
              pixels**2),
        _step("reindexed", "the same by offset", "H[i,j] = sum_ab V[i,j,a,b] X[i+a,j+b]", pixels**2, pixels, pixels,
              pixels**2),
        _step("local", f"locally connected, {side}x{side}", near, pixels * taps, pixels,
              pixels, pixels * taps),
        _step("invariant", f"shared, {reach[0]}x{reach[1]}", "H[i,j] = sum_ab V[a,b] X[i+a,j+b]", math.prod(reach), 1,
              pixels, pixels**2, outputs=pixels),
        _step("conv", f"shared and local, {side}x{side}", near, taps, 1, pixels,
              pixels * taps, outputs=pixels),
        _step("channels", f"{side}x{side}, 1 to {channels} channels", "H[i,j,d] = sum_abc V[a,b,c,d] X[i+a,j+b,c]",
              taps * channels, channels, pixels, pixels * taps * channels, outputs=pixels * channels),
    )  # fmt: skip


def _step(
    name: str, layer: str, formula: str, weights: int, biases: int, pixels: int, products: int, outputs: int = 0
) -> Step:
    """A step on so many pixels; without `outputs` it has one for each bias."""
    return Step(name, layer, formula, weights, biases, 2 * products, pixels + weights + (outputs or biases))


def parameters(
    input_size: int | Sequence[int], *, units: int = 1000, delta: int = 2, channels: int = 16, bias: bool = False
) -> dict[str, int]:
    """Trainable parameters of every step, for one gray image.

    Parameters
    ----------
    input_size, units, delta, channels
        As for `steps`.
    bias : bool, default False
        Whether to count biases too.

    Returns
    -------
    dict of str to int
        By the names of the steps, in their order.

    Raises
    ------
    ValueError, TypeError
        As `steps`.

    Examples
    --------
    >>> from fastconv import ladder
    >>> count = ladder.parameters((1000, 1000))
    >>> count["dense"] == 10**12, count["units"] == 10**9, count["conv"], count["channels"]
    (True, True, 25, 400)
    """
    counted = steps(input_size, units=units, delta=delta, channels=channels)
    return {step.name: step.parameters + (step.biases if bias else 0) for step in counted}
