"""The one table of convolutions that every benchmark takes its shapes from.

The layers are those of the publications, at batch size 1 unless their name ends in the batch. Batch and channels come
first in a row, then the image and the kernel, as in ``conv("resnet50-3x3-56", 64, 56, 64, 3, padding=1)``. Which class
of problems a row stands for follows from its geometry (`bench.shapes`); each class has at least four.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.shapes import ConvCase, conv, depthwise

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
    # Krizhevsky et al. 2012: the second layer ran on two GPUs, hence its groups.
    conv("alexnet-conv1", 3, 224, 64, 11, stride=4, padding=2),
    conv("alexnet-conv2", 64, 27, 192, 5, padding=2),
    conv("alexnet-conv2-groups", 96, 27, 256, 5, padding=2, groups=2),
    # Szegedy et al. 2014 and 2015.
    conv("googlenet-3b-5x5", 32, 28, 96, 5, padding=2),
    conv("inception3-1x7", 192, 17, 192, (1, 7), padding=(0, 3)),
    conv("inception3-7x1", 192, 17, 192, (7, 1), padding=(3, 0)),
    conv("inception3-1x3", 384, 8, 384, (1, 3), padding=(0, 1)),
    conv("inception3-3x1", 384, 8, 384, (3, 1), padding=(1, 0)),
    # Romera et al. 2017.
    conv("erfnet-3x1", 64, (64, 128), 64, (3, 1), padding=(1, 0)),
    conv("erfnet-1x3", 64, (64, 128), 64, (1, 3), padding=(0, 1)),
    # ResNet-50 at batch sizes of inference servers and of training; ResNet-20 for CIFAR-10.
    conv("resnet50-stem-n8", 3, 224, 64, 7, n=8, stride=2, padding=3),
    conv("resnet50-conv2-3x3-n8", 64, 56, 64, 3, n=8, padding=1),
    conv("resnet50-conv2-expand-n8", 64, 56, 256, 1, n=8),
    conv("resnet50-conv3-3x3-s2-n8", 128, 56, 128, 3, n=8, stride=2, padding=1),
    conv("resnet50-conv4-3x3-n32", 256, 14, 256, 3, n=32, padding=1),
    conv("resnet50-conv5-3x3-n32", 512, 7, 512, 3, n=32, padding=1),
    conv("resnet20-stage1", 16, 32, 16, 3, padding=1),
    conv("resnet20-stage3", 64, 8, 64, 3, padding=1),
    # Redmon and Farhadi 2018; Radford et al. 2015; Dosovitskiy et al. 2020.
    conv("darknet53-down-208", 64, 208, 128, 3, stride=2, padding=1),
    conv("dcgan-down-32", 64, 32, 128, 4, stride=2, padding=1),
    conv("vit-patches", 3, 224, 768, 16, stride=16),
    # Xie et al. 2016 (4 to 32 channels a group), Radosavovic et al. 2020 (24 and 48), Zhang et al. 2017.
    conv("resnext50-conv2-3x3", 128, 56, 128, 3, padding=1, groups=32),
    conv("resnext50-conv3-3x3", 256, 28, 256, 3, padding=1, groups=32),
    conv("resnext50-conv4-3x3", 512, 14, 512, 3, padding=1, groups=32),
    conv("resnext50-conv5-3x3", 1024, 7, 1024, 3, padding=1, groups=32),
    conv("regnetx-600mf-stage3", 240, 14, 240, 3, padding=1, groups=10),
    conv("regnetx-3.2gf-stage2", 192, 28, 192, 3, padding=1, groups=4),
    conv("shufflenet-expand", 60, 28, 240, 1, groups=3),
    conv("groups-of-3", 96, 56, 96, 3, padding=1, groups=32),
    # Tan and Le 2019, B0: 5x5 depthwise, and the squeeze-and-excitation layers of Hu et al. on one pixel.
    depthwise("efficientnetb0-dw-28-s2", 240, 28, 5, stride=2),
    depthwise("efficientnetb0-dw-14", 672, 14, 5),
    conv("efficientnetb0-squeeze", 1152, 1, 48, 1),
    conv("efficientnetb0-excite", 48, 1, 1152, 1),
    conv("efficientnetb0-project-7", 1152, 7, 192, 1),
    conv("squeezenet-fire9-squeeze", 512, 13, 64, 1),
    depthwise("mobilenetv2-dw-56-n8", 144, 56, 3, n=8),
    depthwise("multiplier2-dw-56", 64, 56, 3, multiplier=2),
    # Chen et al. 2017 and 2018: atrous pyramid, output stride 16; Yu and Koltun 2015: context module.
    conv("deeplabv3-block4", 512, 33, 512, 3, padding=2, dilation=2),
    conv("deeplabv3-aspp-6", 512, 33, 256, 3, padding=6, dilation=6),
    conv("deeplabv3-aspp-12", 512, 33, 256, 3, padding=12, dilation=12),
    depthwise("deeplabv3+-dw-33", 960, 33, 3, dilation=2),
    depthwise("deeplabv3+-dw-aspp-12", 320, 33, 3, dilation=12),
    conv("dilatednet-context-8", 21, 64, 21, 3, padding=8, dilation=8),
    # Super-resolution: Dong et al. 2014, Shi et al. 2016, Kim et al. 2015, Lim et al. 2017.
    conv("srcnn-patches", 1, 256, 64, 9, padding=4),
    conv("srcnn-output", 32, 256, 1, 5, padding=2),
    conv("espcn-features", 1, 256, 64, 5, padding=2),
    conv("vdsr-output", 64, 256, 1, 3, padding=1),
    conv("edsr-stem", 3, 128, 64, 3, padding=1),
    conv("edsr-output", 64, 256, 3, 3, padding=1),
    # Ding et al. 2022, and dense kernels as optics and image processing have them.
    depthwise("replknet-dw-56", 128, 56, 31),
    depthwise("replknet-dw-28", 256, 28, 29),
    depthwise("replknet-dw-14", 512, 14, 27),
    depthwise("replknet-dw-7", 1024, 7, 13),
    conv("kernel-13-4to4", 4, 256, 4, 13, padding=6),
    conv("kernel-15-8to8", 8, 128, 8, 15, padding=7),
    conv("kernel-25-1to1", 1, 1000, 1, 25, padding=12),
    conv("kernel-31-3to3", 3, 256, 3, 31, padding=15),
    conv("kernel-63-1to1", 1, 512, 1, 63, padding=31),
    # Wei et al. 2016; 50 MB of weights; numbers of channels that fill no vector.
    conv("openpose-stage2", 128, 46, 128, 7, padding=3),
    conv("weights-7x7-512", 512, 14, 512, 7, padding=3),
    conv("kernel-11-16to16", 16, 128, 16, 11, padding=5),
    conv("odd-50to70", 50, 56, 70, 3, padding=1),
    conv("odd-50to70-1x1", 50, 56, 70, 1),
    conv("odd-50to70-5x5", 50, 28, 70, 5, padding=2),
)


def named(name: str) -> ConvCase:
    """Look one case up by its name."""
    return next(case for case in CASES if case.name == name)


def matching(pattern: str, table: Iterable[ConvCase] = CASES) -> list[ConvCase]:
    """Return the cases whose name contains a match of a regular expression."""
    return [case for case in table if re.search(pattern, case.name)]
