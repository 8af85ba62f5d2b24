"""The one table of convolutions that every benchmark takes its shapes from.

The layers are those of the publications, at batch size 1. Batch and channels come first in a row, then the image and
the kernel, as in ``conv("resnet50-3x3-56", 64, 56, 64, 3, padding=1)``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


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
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def output_size(self) -> tuple[int, int]:
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
    def parameters(self) -> dict[str, Any]:
        """The keyword arguments that fastconv's functions take for this case."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }


def conv(
    name: str,
    ic: int,
    image: int,
    oc: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> ConvCase:
    """Describe a square layer; the network is what its name begins with."""
    return ConvCase(
        name=name,
        network=name.partition("-")[0],
        n=1,
        ic=ic,
        ih=image,
        iw=image,
        oc=oc,
        kh=kernel,
        kw=kernel,
        stride=(stride, stride),
        padding=(padding, padding),
        groups=groups,
    )


def depthwise(name: str, channels: int, image: int, kernel: int, *, stride: int = 1) -> ConvCase:
    """Describe a layer with one filter a channel, padded to keep the size."""
    return conv(name, channels, image, channels, kernel, stride=stride, padding=kernel // 2, groups=channels)


MEGAPIXEL = (
    conv("megapixel-3x3", 1, 1000, 1, 3, padding=1),
    conv("megapixel-5x5", 1, 1000, 1, 5, padding=2),
    conv("megapixel-7x7", 1, 1000, 1, 7, padding=3),
    conv("megapixel-11x11", 1, 1000, 1, 11, padding=5),
    conv("megapixel-3x3-3to16", 3, 1000, 16, 3, padding=1),
    conv("megapixel-3x3-16to32", 16, 1000, 32, 3, padding=1),
)
"""Filters of a 1000 x 1000 image, which the headline holds against a dense layer."""

CASES = (
    # LeCun et al. 1998. C3 with all its connections, as everyone implements it now.
    conv("lenet5-c1", 1, 32, 6, 5),
    conv("lenet5-c3", 6, 14, 16, 5),
    conv("lenet5-c5", 16, 5, 120, 5),
    # Simonyan and Zisserman 2014, configuration D.
    conv("vgg16-conv1_1", 3, 224, 64, 3, padding=1),
    conv("vgg16-conv1_2", 64, 224, 64, 3, padding=1),
    conv("vgg16-conv2_2", 128, 112, 128, 3, padding=1),
    conv("vgg16-conv3_2", 256, 56, 256, 3, padding=1),
    conv("vgg16-conv4_2", 512, 28, 512, 3, padding=1),
    conv("vgg16-conv5_2", 512, 14, 512, 3, padding=1),
    # He et al. 2015, with the stride in the 3x3 as frameworks have it ("v1.5").
    conv("resnet50-stem", 3, 224, 64, 7, stride=2, padding=3),
    conv("resnet50-conv2-reduce", 256, 56, 64, 1),
    conv("resnet50-conv2-3x3", 64, 56, 64, 3, padding=1),
    conv("resnet50-conv2-expand", 64, 56, 256, 1),
    conv("resnet50-conv3-3x3-s2", 128, 56, 128, 3, stride=2, padding=1),
    conv("resnet50-conv3-shortcut", 256, 56, 512, 1, stride=2),
    conv("resnet50-conv3-3x3", 128, 28, 128, 3, padding=1),
    conv("resnet50-conv4-3x3", 256, 14, 256, 3, padding=1),
    conv("resnet50-conv5-3x3", 512, 7, 512, 3, padding=1),
    conv("resnet50-conv5-expand", 512, 7, 2048, 1),
    # Sandler et al. 2018, width 1.0.
    conv("mobilenetv2-stem", 3, 224, 32, 3, stride=2, padding=1),
    depthwise("mobilenetv2-dw-112", 32, 112, 3),
    conv("mobilenetv2-expand-112", 16, 112, 96, 1),
    depthwise("mobilenetv2-dw-112-s2", 96, 112, 3, stride=2),
    depthwise("mobilenetv2-dw-56", 144, 56, 3),
    conv("mobilenetv2-project-56", 144, 56, 24, 1),
    depthwise("mobilenetv2-dw-14", 384, 14, 3),
    depthwise("mobilenetv2-dw-14-s2", 576, 14, 3, stride=2),
    depthwise("mobilenetv2-dw-7", 960, 7, 3),
    conv("mobilenetv2-head", 320, 7, 1280, 1),
    # Ronneberger et al. 2015: no padding, 572 x 572 in, 388 x 388 out.
    conv("unet-enc1_1", 1, 572, 64, 3),
    conv("unet-enc1_2", 64, 570, 64, 3),
    conv("unet-enc3_2", 256, 138, 256, 3),
    conv("unet-bottom_1", 512, 32, 1024, 3),
    conv("unet-dec4_1", 1024, 56, 512, 3),
    conv("unet-dec1_1", 128, 392, 64, 3),
    conv("unet-out", 64, 388, 2, 1),
    # Liu et al. 2022, tiny.
    conv("convnext-stem", 3, 224, 96, 4, stride=4),
    depthwise("convnext-dw-56", 96, 56, 7),
    conv("convnext-expand-56", 96, 56, 384, 1),
    conv("convnext-reduce-56", 384, 56, 96, 1),
    conv("convnext-downsample-56", 96, 56, 192, 2, stride=2),
    depthwise("convnext-dw-28", 192, 28, 7),
    depthwise("convnext-dw-14", 384, 14, 7),
    depthwise("convnext-dw-7", 768, 7, 7),
    conv("convnext-expand-7", 768, 7, 3072, 1),
    *MEGAPIXEL,
)


def named(name: str) -> ConvCase:
    """Look one case up by its name."""
    return next(case for case in CASES if case.name == name)


def matching(pattern: str) -> list[ConvCase]:
    """Return the cases whose name contains a match of a regular expression."""
    return [case for case in CASES if re.search(pattern, case.name)]
