"""A named convolution problem, and the class of problems that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_LARGE_KERNEL = 13
_FEW_CHANNELS = 4
_SMALL_FLOPS = 5e6

KINDS = (
    "3x3 stride 1",
    "1x1",
    "strided",
    "few channels",
    "depthwise",
    "grouped",
    "dilated",
    "5x5 to 11x11",
    "1xk and kx1",
    "large kernel",
    "small problem",
)
"""The classes, in the order in which tables and figures show them."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class ConvCase:
    """A named convolution problem. Arrays are NHWC, weights HWIO."""

    name: str
    network: str
    n: int
    ic: int
    ih: int
    iw: int
    oc: int
    kh: int
    kw: int
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    @property
    def output_size(self) -> Pair:
        """Rows and columns of the output."""
        sizes = zip((self.ih, self.iw), (self.kh, self.kw), self.stride, self.padding, self.dilation, strict=True)
        oh, ow = ((i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in sizes)
        return oh, ow

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.ih, self.iw, self.ic

    @property
    def w_shape(self) -> tuple[int, int, int, int]:
        return self.kh, self.kw, self.ic // self.groups, self.oc

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.n, *self.output_size, self.oc

    @property
    def flops(self) -> int:
        """Operations of the plain sum, a multiplication and an addition for each product."""
        oh, ow = self.output_size
        return 2 * self.n * oh * ow * self.oc * self.kh * self.kw * (self.ic // self.groups)

    @property
    def parameters(self) -> dict[str, Any]:
        """The keyword arguments that fastconv's functions take for this case."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def kind(self) -> str:
        """The one of `KINDS` that says best what makes the problem hard; the first that applies."""
        kernel, unit = (self.kh, self.kw), (1, 1)
        applies = {
            "dilated": self.dilation != unit,
            "large kernel": max(kernel) >= _LARGE_KERNEL and self.stride == unit,
            "depthwise": self.groups == self.ic > 1,
            "grouped": self.groups > 1,
            "small problem": self.flops < _SMALL_FLOPS,
            "few channels": min(self.ic, self.oc) <= _FEW_CHANNELS,
            "strided": self.stride != unit,
            "1x1": kernel == unit,
            "1xk and kx1": 1 in kernel,
            "3x3 stride 1": kernel == (3, 3),
        }
        return next((kind for kind, does in applies.items() if does), "5x5 to 11x11")

    def __str__(self) -> str:
        oh, ow = self.output_size
        text = f"{self.n} x {self.ih}x{self.iw}x{self.ic} -> {oh}x{ow}x{self.oc}, {self.kh}x{self.kw}"
        for name, value in (("stride", self.stride), ("dilation", self.dilation)):
            if value != (1, 1):
                text += f" {name} {value[0]}"
        return text if self.groups == 1 else f"{text} groups {self.groups}"


def conv(
    name: str,
    ic: int,
    image: int | Pair,
    oc: int,
    kernel: int | Pair,
    *,
    n: int = 1,
    stride: int = 1,
    padding: int | Pair = 0,
    dilation: int = 1,
    groups: int = 1,
) -> ConvCase:
    """Describe a layer, square where one number stands for two; the network is what its name begins with."""
    (ih, iw), (kh, kw) = _pair(image), _pair(kernel)
    return ConvCase(
        name=name,
        network=name.partition("-")[0],
        n=n,
        ic=ic,
        ih=ih,
        iw=iw,
        oc=oc,
        kh=kh,
        kw=kw,
        stride=_pair(stride),
        padding=_pair(padding),
        dilation=_pair(dilation),
        groups=groups,
    )


def depthwise(
    name: str,
    channels: int,
    image: int,
    kernel: int,
    *,
    n: int = 1,
    stride: int = 1,
    dilation: int = 1,
    multiplier: int = 1,
) -> ConvCase:
    """Describe a layer with `multiplier` filters a channel, padded to keep the size."""
    return conv(
        name,
        channels,
        image,
        channels * multiplier,
        kernel,
        n=n,
        stride=stride,
        padding=dilation * (kernel // 2),
        dilation=dilation,
        groups=channels,
    )


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else value
