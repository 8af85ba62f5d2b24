"""The one table of problems that drives every algorithm, layout, dtype and direction.

Sizes are chosen around the register tiles (14 pixels by 32 channels for float32 with AVX-512, 6 by 16 with
AVX2, 6 by 8 with SSE; half the channels for float64): below, at, above and not dividing them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import fastconv

from . import reference

LAYOUTS = ("NHWC", "NCHW")
DTYPES = ("float32", "float64")
DIRECTIONS = ("forward", "grad_input", "grad_weight")

ALGORITHMS = fastconv.conv2d_algorithms()
POLICIES = ("auto", "exact")
NAMED = tuple(name for name in ALGORITHMS if name not in POLICIES)
UNIVERSAL = ("auto", "exact", "naive", "im2col", "direct")
"""Algorithms that the contract says take every problem; another one may decline with a ValueError."""
INEXACT = ("winograd", "fft")
"""Algorithms that do not sum the plain products, whose results are never exact; "auto" may choose them."""


@dataclass(frozen=True)
class Case:
    """A named problem: channels, sizes as (height, width), and the arguments as a caller writes them."""

    name: str
    ic: int
    oc: int
    image: tuple[int, int]
    kernel: tuple[int, int]
    stride: int | tuple = 1
    padding: int | str | tuple = 0
    dilation: int | tuple = 1
    groups: int = 1
    n: int = 1

    @property
    def geometry(self) -> reference.Geometry:
        """The windows of this problem."""
        return reference.Geometry.of(self.image, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def arguments(self) -> dict:
        """The keyword arguments that every public function takes."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def shapes(self, layout: str) -> tuple[tuple, tuple, tuple]:
        """Shapes of x, w and y in the layout."""
        icg = self.ic // self.groups
        oh, ow = self.geometry.output_size
        if layout == "NHWC":
            return (self.n, *self.image, self.ic), (*self.kernel, icg, self.oc), (self.n, oh, ow, self.oc)
        return (self.n, self.ic, *self.image), (self.oc, icg, *self.kernel), (self.n, self.oc, oh, ow)

    def reduction_length(self, direction: str) -> int:
        """Most products in one sum."""
        kh, kw = self.kernel
        oh, ow = self.geometry.output_size
        return {
            "forward": kh * kw * self.ic // self.groups,
            "grad_input": kh * kw * self.oc // self.groups,
            "grad_weight": self.n * oh * ow,
        }[direction]


def _winograd_tails() -> list[Case]:
    """Stride 1 around the tiles of 4 x 4 outputs (3x3) and 2 x 2 (5x5), with enough channels for a vector."""
    sizes = ((1, 1), (2, 3), (4, 4), (5, 4), (7, 9), (8, 12), (13, 6))
    cases = [Case(f"winograd-{h}x{w}", 17, 19, (h, w), (3, 3), padding=1) for h, w in sizes]
    cases += [Case(f"winograd-oc{oc}", 16, oc, (6, 7), (3, 3), padding=1) for oc in (1, 15, 16, 17, 32, 33, 48)]
    sizes = ((1, 1), (2, 3), (3, 4), (7, 5))
    cases += [Case(f"winograd-k5-{h}x{w}", 17, 19, (h, w), (5, 5), padding=2) for h, w in sizes]
    return [
        *cases,
        Case("winograd-k5-oc1", 16, 1, (6, 7), (5, 5), padding=2),
        Case("winograd-k5-oc48", 16, 48, (7, 6), (5, 5)),
        Case("winograd-k5-padding-asymmetric", 33, 18, (6, 9), (5, 5), padding=((0, 3), (4, 1)), n=2),
        Case("winograd-k5-padding-wide", 16, 16, (2, 3), (5, 5), padding=((6, 4), (5, 7))),
        Case("winograd-k5-groups", 51, 60, (5, 6), (5, 5), padding=2, groups=3, n=2),
        Case("threads-winograd-k5-batch", 40, 33, (9, 8), (5, 5), padding="same", n=7),
        Case("threads-winograd-k5-slabs", 17, 33, (17, 18), (5, 5), padding=2, n=3),
        Case("threads-winograd-k5-packed", 32, 96, (33, 34), (5, 5), padding=2, n=3),
        Case("threads-winograd-k5-streamed", 260, 33, (15, 14), (5, 5), padding=2),
        *(
            Case(f"winograd-d2-{h}x{w}", 17, 19, (h, w), (3, 3), padding=2, dilation=2)
            for h, w in ((1, 1), (5, 6), (17, 9))
        ),
        Case("winograd-d2x3", 16, 33, (10, 13), (3, 3), padding=((1, 3), (4, 2)), dilation=(2, 3), n=2),
        Case("winograd-d7-beyond-image", 16, 17, (5, 4), (3, 3), padding=(7, 6), dilation=(7, 6)),
        Case("winograd-d5-groups", 34, 36, (12, 21), (3, 3), padding=5, dilation=5, groups=2),
        Case("winograd-k5-d2", 18, 17, (9, 8), (5, 5), padding=4, dilation=2, n=2),
        Case("winograd-k5-d1x2", 17, 16, (7, 13), (5, 5), padding=(2, 1), dilation=(1, 2)),
        Case("threads-winograd-dilated", 40, 33, (19, 18), (3, 3), padding=3, dilation=3, n=3),
        Case("winograd-padding-asymmetric", 33, 18, (6, 9), (3, 3), padding=((0, 3), (2, 1)), n=2),
        Case("winograd-padding-wide", 16, 16, (2, 3), (3, 3), padding=((5, 4), (3, 6))),
        Case("winograd-groups", 51, 60, (7, 6), (3, 3), padding=1, groups=3, n=2),
        Case("threads-winograd", 64, 96, (30, 29), (3, 3), padding=(0, 1)),
        Case("threads-winograd-batch", 40, 33, (9, 11), (3, 3), padding="same", n=7),
        Case("threads-winograd-slabs", 17, 33, (29, 30), (3, 3), padding=1, n=4),
        Case("threads-winograd-blocks", 64, 64, (32, 31), (3, 3), padding=1),
        Case("threads-winograd-streamed", 260, 33, (27, 28), (3, 3), padding=1),
    ]


def _winograd_pieces() -> list[Case]:
    """Kernels cut into pieces of 3 or 4 taps, the last with fewer, and into the phases of a stride."""
    kernels = [(4, 4), (6, 6), (7, 7), (9, 8), (3, 5), (7, 3), (1, 9), (4, 1)]
    cases = [
        Case(f"winograd-k{kh}x{kw}-{h}x{w}", 17, 19, (h, w), (kh, kw), padding=(kh // 2, kw // 2))
        for kh, kw in kernels
        for h, w in ((1, 2), (9, 11))
    ]
    strided = [((3, 3), 2), ((4, 4), 2), ((5, 5), 2), ((7, 7), 3), ((5, 3), (2, 1)), ((1, 5), (3, 2)), ((3, 7), (3, 2))]
    cases += [
        Case(f"winograd-k{kh}x{kw}-strided-{h}x{w}", 17, 19, (h, w), (kh, kw), stride, (kh // 2, kw // 2))
        for (kh, kw), stride in strided
        for h, w in ((3, 2), (21, 26))
    ]
    return [
        *cases,
        Case("winograd-k7-padding-asymmetric", 33, 18, (6, 9), (7, 7), padding=((0, 5), (4, 1)), n=2),
        Case("winograd-k6-groups", 51, 60, (7, 8), (6, 6), padding=3, groups=3, n=2),
        Case("winograd-k7-dilated", 18, 17, (17, 19), (7, 7), padding=(7, 3), dilation=(2, 1)),
        Case("winograd-k3-strided-asymmetric", 34, 18, (12, 17), (3, 3), 2, ((0, 3), (2, 1)), n=2, groups=2),
        Case("threads-winograd-k7-slabs", 17, 33, (29, 30), (7, 7), padding=3, n=3),
        Case("threads-winograd-k7-batch", 40, 33, (9, 11), (7, 7), padding="same", n=7),
        Case("threads-winograd-k6-streamed", 260, 33, (27, 28), (6, 6), padding=3),
        Case("winograd-k5-strided-asymmetric", 34, 36, (12, 17), (5, 5), 2, ((0, 3), (2, 1)), n=2, groups=2),
        Case("threads-winograd-k5-strided", 40, 33, (37, 38), (5, 5), 2, 2, n=3),
        Case("threads-winograd-k4-strided", 33, 40, (20, 26), (4, 4), 2, 1, n=2),
        Case("threads-winograd-k4-packed", 32, 96, (33, 34), (4, 4), padding=2, n=3),
    ]


def _flat_winograd() -> list[Case]:
    """Kernels of one row or one column: tiles of 4 outputs (3 and 5 taps) and of 2 (7 taps), of 1 across."""
    flat = [(1, 3), (5, 1), (1, 7), (7, 1)]
    cases = [
        Case(f"winograd-k{kh}x{kw}-{h}x{w}", 17, 19, (h, w), (kh, kw), padding=(kh // 2, kw // 2))
        for kh, kw in flat
        for h, w in ((1, 1), (9, 4), (6, 11))
    ]
    return [
        *cases,
        Case("winograd-k3x1-oc33", 16, 33, (9, 5), (3, 1), padding=((0, 2), (3, 1)), n=2),
        Case("winograd-k1x5-oc1", 16, 1, (4, 10), (1, 5)),
        Case("winograd-k1x7-groups", 51, 60, (5, 12), (1, 7), padding=((0, 0), (4, 1)), groups=3, n=2),
        Case("winograd-k3x1-dilated", 18, 17, (13, 6), (3, 1), padding=(3, 0), dilation=(3, 2)),
        Case("winograd-k1x5-dilated", 17, 16, (5, 19), (1, 5), padding=(0, 4), dilation=(3, 2), n=2),
        Case("threads-winograd-k3x1-slabs", 17, 33, (61, 30), (3, 1), padding=(1, 0), n=2),
        Case("threads-winograd-k1x7-batch", 40, 33, (9, 11), (1, 7), padding="same", n=7),
        Case("threads-winograd-k1x3-streamed", 260, 33, (27, 48), (1, 3), padding=(0, 1)),
        Case("threads-winograd-k5x1-packed", 32, 96, (33, 64), (5, 1), padding=(2, 0), n=3),
    ]


def _winograd_rows() -> list[Case]:
    """Too few channels to fill vectors, around tiles of 4 and 5 pixels of a row, 1 to 4 of them together."""
    widths = ((1, 1), (4, 3), (2, 16), (7, 17), (3, 33))
    return [
        *(Case(f"winograd-rows-{h}x{w}", 3, 19, (h, w), (3, 3), padding=1) for h, w in widths),
        *(Case(f"winograd-rows-oc{oc}", 2, oc, (4, 21), (4, 5), padding=(0, 2)) for oc in (1, 8, 9, 16, 32)),
        Case("winograd-rows-input", 33, 3, (6, 22), (3, 3), padding=1, n=2),
        Case("winograd-rows-k2x2", 3, 17, (5, 14), (2, 2)),
        Case("winograd-rows-k1x7", 7, 12, (3, 23), (1, 7), padding=((0, 0), (5, 1))),
        Case("winograd-rows-k3x13", 1, 6, (4, 40), (3, 13), padding=(1, 6)),
        Case("winograd-rows-k7-strided", 3, 20, (20, 47), (7, 7), 2, 3, n=2),
        Case("winograd-rows-k11-strided", 3, 17, (27, 62), (11, 11), 4, ((3, 0), (2, 5))),
        Case("winograd-rows-k4-strided", 4, 9, (13, 38), (5, 4), (1, 2), (2, 1)),
        Case("winograd-rows-padding-wide", 2, 18, (2, 5), (3, 3), padding=((5, 4), (8, 3)), n=2),
        Case("winograd-rows-dilated", 3, 18, (12, 19), (3, 3), padding=(3, 1), dilation=(3, 1)),
        Case("winograd-rows-strided-dilated", 3, 18, (12, 29), (3, 5), (2, 2), ((0, 5), (3, 1)), (2, 1), n=2),
        Case("threads-winograd-rows", 3, 33, (61, 70), (3, 3), padding=1, n=3),
        Case("threads-winograd-rows-k7-strided", 3, 40, (53, 94), (7, 7), 2, 3, n=2),
    ]


def _tails() -> list[Case]:
    counts = (1, 3, 5, 15, 16, 17, 31, 32, 33, 48, 65)
    cases = [Case(f"tail-oc{oc}", 5, oc, (4, 8), (3, 2), padding=(1, 0)) for oc in counts]
    cases += [Case(f"tail-ic{ic}", ic, 7, (4, 8), (2, 3), padding=(0, 1)) for ic in counts]
    widths = (1, 2, 4, 5, 6, 7, 12, 13, 14, 15, 27, 28, 29)
    cases += [Case(f"tail-ow{ow}", 3, 33, (3, ow + 2), (2, 3)) for ow in widths]
    both = ((16, 8, 6), (17, 31, 13), (32, 32, 14), (33, 65, 15), (65, 33, 29), (8, 9, 7))
    cases += [Case(f"tail-{ic}to{oc}-ow{ow}", ic, oc, (2, ow), (1, 1)) for ic, oc, ow in both]
    return cases


def _plane_tails() -> list[Case]:
    """Few channels a group around tiles of 4 to 14 rows and 4 to 32 pixels of a plane; kernels higher than 7."""
    sizes = ((6, 31), (7, 32), (8, 33), (9, 16), (10, 17), (13, 7), (14, 15), (15, 48), (4, 65))
    cases = [Case(f"planes-{h}x{w}", 4, 4, (h, w), (3, 3), padding=1, groups=4) for h, w in sizes]
    return [
        *cases,
        Case("planes-stride2-5x5", 5, 5, (14, 67), (5, 5), 2, ((2, 1), (1, 2)), groups=5, n=2),
        Case("planes-stride2-2x3", 4, 4, (9, 33), (2, 3), 2, groups=4),
        Case("planes-stride2-left-over", 3, 3, (12, 40), (4, 2), 2, ((3, 0), (0, 1)), groups=3),
        Case("planes-stride2-ends-inside", 2, 2, (5, 160), (3, 3), 2, ((1, 0), (1, 2)), groups=2),
        Case("planes-stride2-one-column", 2, 2, (6, 3), (3, 3), 2, groups=2),
        Case("planes-stride2-asymmetric", 3, 3, (15, 35), (3, 3), 2, ((0, 1), (1, 0)), groups=3, n=2),
        Case("planes-stride2-even", 3, 3, (16, 34), (3, 3), 2, ((1, 0), (0, 1)), groups=3),
        Case("planes-stride2-5x5", 4, 4, (19, 37), (5, 5), 2, ((2, 1), (1, 3)), groups=4),
        Case("planes-stride2-7x7", 2, 2, (17, 33), (7, 7), 2, 3, groups=2),
        Case("planes-stride2-1x17", 3, 3, (7, 83), (1, 17), 2, ((0, 0), (8, 3)), groups=3, n=2),
        Case("planes-stride2-2x9", 2, 2, (9, 70), (2, 9), 2, ((1, 0), (4, 6)), groups=2),
        Case("planes-stride2-17x4", 2, 2, (23, 18), (17, 4), 2, (8, 2), groups=2),
        Case("planes-stride2-15x3", 2, 2, (31, 21), (15, 3), 2, ((7, 4), (1, 2)), groups=2),
        Case("planes-strides-unequal", 3, 3, (21, 36), (4, 3), (3, 2), ((1, 2), (2, 0)), groups=3),
        Case("planes-stride-rows", 3, 3, (29, 20), (3, 5), (4, 1), ((1, 0), (2, 3)), groups=3),
        Case("planes-stride2-dilated", 2, 2, (19, 38), (3, 2), 2, ((2, 1), (1, 2)), (1, 3), groups=2),
        Case("planes-dilated", 3, 3, (22, 35), (3, 3), padding=((3, 0), (1, 4)), dilation=(3, 2), groups=3),
        Case("planes-dilated-wide", 2, 2, (9, 40), (2, 3), padding=(5, 17), dilation=(7, 12), groups=2, n=2),
        Case("planes-9x5", 2, 2, (12, 40), (9, 5), padding=(4, 2), groups=2),
        Case("planes-15x3", 2, 2, (11, 18), (15, 3), padding=((9, 5), (2, 0)), groups=2),
        Case("planes-multiplier-3", 4, 12, (13, 34), (3, 3), 2, 1, groups=4),
        Case("planes-3to9", 3, 9, (16, 50), (3, 3), padding=1, n=2),
        Case("planes-8to5-groups", 16, 10, (15, 33), (5, 3), padding=((1, 3), (0, 2)), groups=2),
        Case("threads-planes-stride2", 40, 40, (37, 70), (3, 3), 2, ((0, 1), (1, 1)), groups=40, n=2),
    ]


def _block_tails() -> list[Case]:
    """Stride 1 under large kernels, around blocks of 32 to 160 points, two of which are transformed together.

    Most have 15 rows, as `direct` compiles a kernel for each height: a minute for those that these cases had before.
    """
    sizes = ((1, 1), (18, 34), (19, 50), (37, 17), (40, 90), (66, 67))
    cases = [Case(f"blocks-{h}x{w}", 1, 1, (h, w), (15, 15), padding=7) for h, w in sizes]
    return [
        *cases,
        Case("blocks-valid", 1, 1, (61, 83), (15, 22), n=3),
        Case("blocks-padding-asymmetric", 1, 1, (30, 41), (15, 19), padding=((0, 9), (14, 1))),
        Case("blocks-padding-wide", 1, 1, (5, 7), (15, 13), padding=((40, 12), (17, 60))),
        Case("blocks-kernel-beyond-image", 2, 2, (9, 12), (15, 29), padding=((7, 12), (14, 15)), groups=2),
        Case("blocks-one-row", 1, 1, (1, 300), (1, 45), padding=(0, 22)),
        Case("blocks-one-column", 1, 1, (300, 1), (15, 1), padding=(7, 0)),
        Case("blocks-full", 1, 2, (20, 25), (16, 18), padding="full"),
        Case("blocks-depthwise", 5, 5, (26, 45), (15, 13), padding=6, groups=5, n=2),
        Case("blocks-depth-multiplier", 3, 9, (23, 30), (15, 12), padding=5, groups=3),
        Case("blocks-3to4", 3, 4, (22, 31), (15, 13), padding=6, n=2),
        Case("blocks-groups-2to3", 4, 6, (25, 20), (15, 16), padding=(5, 7), groups=2),
        Case("threads-blocks", 1, 1, (130, 141), (15, 31), padding=(7, 15), n=2),
        Case("threads-blocks-depthwise", 33, 33, (40, 37), (15, 15), padding=7, groups=33, n=2),
    ]


CASES: tuple[Case, ...] = (
    *_tails(),
    *_block_tails(),
    *_winograd_tails(),
    *_flat_winograd(),
    *_winograd_pieces(),
    *_winograd_rows(),
    *_plane_tails(),
    # one tap, one cell, one window
    Case("scalar", 1, 1, (1, 1), (1, 1)),
    Case("pointwise", 19, 35, (5, 6), (1, 1), n=2),
    Case("pointwise-one-pixel", 40, 33, (1, 1), (1, 1), n=3),
    Case("pointwise-one-channel", 1, 1, (7, 38), (1, 1), n=2),
    Case("pointwise-stride2", 6, 20, (7, 8), (1, 1), stride=2),
    Case("pointwise-padded", 4, 5, (3, 3), (1, 1), padding=2),
    Case("pointwise-groups", 12, 18, (4, 5), (1, 1), groups=3, n=2),
    Case("one-window", 9, 18, (5, 4), (5, 4), n=3),
    Case("one-window-padded", 3, 4, (2, 3), (4, 5), padding=1),
    Case("one-row", 4, 6, (1, 40), (1, 5)),
    Case("one-column", 4, 6, (40, 1), (5, 1)),
    Case("one-pixel-image", 4, 6, (1, 1), (3, 3), padding=1),
    # padding in every form
    Case("same", 5, 8, (7, 9), (3, 3), padding="same"),
    Case("same-even", 5, 8, (7, 9), (4, 2), padding="same"),
    Case("same-lower-even", 5, 8, (7, 9), (4, 2), padding="same_lower"),
    Case("same-stride", 3, 6, (8, 11), (5, 4), stride=(2, 3), padding="same"),
    Case("same-lower-stride", 3, 6, (8, 11), (5, 4), stride=(2, 3), padding="same_lower"),
    Case("same-dilated", 3, 6, (9, 8), (3, 2), padding="same", dilation=(2, 3)),
    Case("same-stride-beyond-kernel", 2, 3, (10, 11), (2, 1), stride=(4, 5), padding="same"),
    Case("valid", 4, 7, (6, 7), (3, 5), padding="valid"),
    Case("full", 3, 5, (4, 6), (3, 4), padding="full"),
    Case("full-dilated", 3, 5, (4, 6), (3, 2), padding="full", dilation=(2, 3)),
    Case("padding-pair", 3, 5, (5, 6), (3, 3), padding=(2, 1)),
    Case("padding-asymmetric", 3, 17, (5, 16), (3, 3), padding=((0, 2), (3, 1))),
    Case("padding-beyond-kernel", 2, 9, (4, 5), (2, 3), padding=((5, 4), (3, 6))),
    Case("kernel-beyond-image", 3, 4, (2, 3), (5, 7), padding=((3, 2), (2, 4))),
    Case("kernel-beyond-image-dilated", 2, 3, (3, 2), (3, 3), padding=(4, 5), dilation=(4, 3)),
    # stride
    Case("stride2", 16, 24, (13, 15), (3, 3), stride=2, padding=1),
    Case("stride2-even", 5, 6, (8, 12), (2, 2), stride=2, n=2),
    Case("stride-unequal", 7, 9, (11, 16), (3, 4), stride=(3, 2), padding=((2, 0), (1, 2))),
    Case("stride-leaves-rest", 3, 4, (12, 13), (3, 3), stride=4),
    Case("stride-beyond-kernel", 4, 18, (13, 14), (2, 3), stride=(5, 4)),
    Case("stride-beyond-image", 4, 6, (5, 6), (3, 2), stride=(9, 11), padding=1),
    Case("stem-7x7", 3, 16, (20, 21), (7, 7), stride=2, padding=3),
    Case("patchify-16", 3, 18, (33, 48), (16, 17), stride=(16, 17), n=2),
    Case("patchify", 3, 20, (8, 12), (4, 4), stride=4, n=2),
    # dilation
    Case("dilated", 6, 10, (9, 14), (3, 3), padding=2, dilation=2),
    Case("dilated-unequal", 4, 12, (12, 11), (2, 4), dilation=(5, 2), padding=((0, 3), (2, 0))),
    Case("dilated-far", 40, 34, (11, 12), (3, 3), padding=8, dilation=(8, 9)),
    Case("dilated-stride", 3, 8, (13, 14), (3, 3), stride=(2, 3), padding=(3, 2), dilation=(3, 2)),
    # groups
    Case("groups", 12, 20, (6, 7), (3, 3), padding=1, groups=4),
    Case("groups-of-17", 34, 34, (4, 15), (3, 2), groups=2, n=2),
    Case("groups-narrow", 40, 8, (5, 6), (3, 3), groups=8),
    Case("groups-square-4", 24, 24, (7, 15), (3, 3), padding=1, groups=6),
    Case("groups-square-2-strided", 18, 18, (9, 11), (3, 4), (2, 1), ((0, 2), (3, 1)), groups=9, n=2),
    Case("groups-square-8-wide", 40, 40, (9, 10), (7, 9), padding=3, groups=5),
    Case("groups-square-3", 21, 21, (7, 15), (3, 3), padding=1, groups=7),
    Case("groups-square-16", 32, 32, (5, 16), (3, 3), padding=1, groups=2),
    Case("groups-2to3-dilated", 22, 33, (8, 13), (3, 2), padding=(2, 1), dilation=2, groups=11, n=2),
    Case("groups-5to2", 45, 18, (6, 9), (3, 3), (1, 2), 1, groups=9),
    Case("groups-square-4-dilated", 20, 20, (8, 13), (3, 3), padding=2, dilation=2, groups=5),
    Case("depthwise", 33, 33, (7, 16), (3, 3), padding=1, groups=33),
    # an image of one pixel looks alike in both layouts, which must not be taken for more
    Case("depthwise-one-window", 33, 33, (5, 3), (5, 3), groups=33, n=2),
    Case("depthwise-one-pixel", 33, 33, (1, 1), (3, 2), padding=(2, 1), groups=33, n=2),
    Case("groups-one-window", 48, 40, (3, 4), (3, 4), groups=2),
    Case("pointwise-images-in-pairs", 5, 7, (14, 14), (1, 1), n=3),
    Case("threads-pointwise-slabs", 19, 35, (41, 45), (1, 1), n=3),
    Case("pointwise-many-pages", 80, 100, (33, 33), (1, 1)),
    Case("pointwise-conflicting-weights", 256, 52, (25, 26), (1, 1), groups=2),
    Case("groups-one-pixel", 48, 40, (1, 1), (3, 3), padding=2, groups=2),
    Case("depthwise-one-channel-in-two", 2, 2, (6, 15), (5, 5), padding=2, groups=2),
    Case("depthwise-3-side-by-side", 3, 3, (14, 21), (5, 5), padding=2, groups=3, n=2),
    Case("depthwise-3-all-together", 3, 3, (15, 19), (4, 2), padding=((0, 3), (4, 1)), dilation=(2, 3), groups=3),
    Case("depthwise-4-side-by-side", 4, 4, (16, 9), (3, 3), padding=1, groups=4, n=3),
    Case("depthwise-6-side-by-side", 6, 6, (9, 17), (7, 3), padding=((3, 2), (0, 1)), groups=6),
    Case("depthwise-12-side-by-side", 12, 12, (5, 6), (3, 4), padding=1, groups=12),
    Case("depthwise-blocks-of-rows", 3, 6, (75, 64), (3, 3), (1, 2), padding=1, groups=3, n=2),
    Case("depthwise-stride2", 16, 16, (9, 11), (3, 3), stride=2, padding=1, groups=16),
    Case("depthwise-stride2-5x4", 33, 33, (12, 13), (5, 4), stride=2, padding=((2, 1), (1, 2)), groups=33),
    Case("depthwise-stride2-2x3", 16, 16, (9, 15), (2, 3), stride=2, padding=((3, 0), (2, 5)), groups=16),
    Case("depthwise-dilated", 18, 18, (11, 10), (3, 3), padding=2, dilation=2, groups=18),
    Case("depthwise-7x7", 24, 24, (9, 10), (7, 7), padding=3, groups=24),
    Case("depthwise-5x5-uneven", 17, 17, (9, 12), (5, 5), padding=((0, 3), (4, 1)), groups=17, n=2),
    Case("depthwise-stride-beyond-kernel", 16, 16, (9, 14), (3, 2), stride=4, padding=(1, 0), groups=16),
    Case("depthwise-all-together", 20, 20, (9, 8), (2, 3), (2, 1), ((0, 2), (3, 1)), (3, 2), groups=20, n=2),
    Case("depth-multiplier-2", 9, 18, (6, 7), (3, 3), padding=1, groups=9),
    Case("depth-multiplier-2-strided", 20, 40, (9, 11), (3, 4), (2, 1), ((0, 2), (3, 1)), groups=20, n=2),
    Case("depth-multiplier-17", 3, 51, (6, 15), (2, 3), groups=3),
    # everything at once
    Case("few-targets", 40, 3, (9, 14), (3, 3), padding=1, n=2),
    Case("few-targets-5", 70, 5, (6, 9), (3, 3), padding=1),
    Case("pointwise-48to9", 48, 9, (20, 31), (1, 1)),
    Case("pointwise-8to96", 8, 96, (9, 10), (1, 1), n=2),
    Case("few-targets-pointwise", 35, 2, (7, 9), (1, 1)),
    Case("few-targets-all-together", 34, 10, (8, 13), (3, 2), (1, 2), ((0, 2), (3, 1)), (2, 3), groups=2),
    Case("all-together", 12, 18, (10, 13), (3, 2), (2, 3), ((1, 3), (2, 0)), (2, 3), groups=3, n=2),
    Case("all-together-wide", 6, 66, (9, 33), (2, 3), (3, 2), ((4, 0), (1, 2)), (3, 2), groups=2),
    Case("all-together-depthwise", 20, 40, (9, 8), (2, 3), (2, 1), ((0, 2), (3, 1)), (3, 2), groups=20, n=2),
    # more work than one block of any algorithm
    Case("batch", 3, 8, (6, 7), (3, 3), padding=1, n=5),
    Case("channels-130to70", 130, 70, (7, 8), (3, 3), padding=1),
    Case("channels-300to40", 300, 40, (3, 5), (2, 2)),
    Case("channels-20to300", 20, 300, (4, 5), (2, 2)),
    Case("image-40x60", 3, 16, (40, 60), (3, 3), padding=1, n=2),
    Case("large-kernel", 2, 17, (22, 23), (11, 11), padding=5),
    # enough work for several threads: 2 to 15 million operations
    Case("threads-plain", 17, 33, (31, 33), (3, 3), padding=1),
    Case("threads-pointwise", 65, 65, (17, 29), (1, 1)),
    Case("threads-batch", 16, 17, (5, 6), (3, 3), padding="same", n=37),
    Case("threads-channels", 300, 200, (3, 4), (3, 3), padding=1),
    Case("threads-stem", 3, 33, (64, 65), (7, 7), stride=2, padding=3),
    Case("threads-one-channel", 1, 1, (150, 160), (5, 5), padding=2, n=2),
    Case("threads-stride", 33, 48, (29, 31), (3, 4), stride=(2, 1), padding=((1, 0), (2, 1))),
    Case("threads-stride-beyond-kernel", 40, 40, (61, 62), (2, 3), stride=(5, 4), padding=1, n=2),
    Case("threads-dilated-groups", 34, 66, (19, 23), (3, 3), padding=2, dilation=2, groups=2),
    Case("threads-depthwise", 65, 65, (30, 31), (3, 3), padding=1, groups=65, n=3),
    Case("threads-depth-multiplier", 20, 60, (33, 35), (3, 3), stride=2, padding=1, groups=20, n=8),
    Case("threads-all-together", 24, 54, (34, 37), (3, 2), (2, 3), ((1, 3), (2, 0)), (2, 3), groups=3, n=4),
)

_TARGETS = (
    "depthwise", "planes-stride2-5x5", "planes-9x5", "stride-beyond-kernel", "threads-plain", "threads-all-together",
    "winograd-7x9", "winograd-oc33", "winograd-groups", "winograd-k5-7x5",
    "winograd-d2x3", "blocks-40x90", "blocks-padding-wide", "blocks-groups-2to3",
)  # fmt: skip
TARGET_CASES = tuple(case for case in CASES if case.name.startswith(("tail-", "all-together")) or case.name in _TARGETS)
"""Rich in tails: for running again in other processes, with other vector widths."""


@dataclass(frozen=True)
class Data:
    """The arrays of a case in one layout and dtype, and what the oracle says about them.

    `expected` is the float64 result of each direction.
    """

    x: np.ndarray
    w: np.ndarray
    grad_y: np.ndarray
    expected: dict[str, np.ndarray]
    magnitudes: Callable[[], dict[str, np.ndarray]] = dict

    @functools.cached_property
    def magnitude(self) -> dict[str, np.ndarray]:
        """The sums of `expected` over absolute values."""
        return self.magnitudes()


def _arrays(case: Case, kind: str, dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(np.frombuffer(case.name.encode(), np.uint8))
    if kind == "integers":
        return [rng.integers(-4, 5, shape).astype(dtype) for shape in case.shapes("NHWC")]
    return [rng.uniform(-1, 1, shape).astype(dtype) for shape in case.shapes("NHWC")]


@functools.cache
def _oracle(case: Case, kind: str, dtype: str, change: Callable) -> dict[str, np.ndarray]:
    x, w, grad_y = map(change, _arrays(case, kind, dtype))
    return {
        "forward": reference.conv2d(x, w, **case.arguments),
        "grad_input": reference.conv2d_grad_input(grad_y, w, x.shape, **case.arguments),
        "grad_weight": reference.conv2d_grad_weight(grad_y, x, case.kernel, **case.arguments),
    }


@functools.cache
def data(case: Case, kind: str, layout: str, dtype: str) -> Data:
    """The arrays of a case; `kind` is "integers" (every sum is exact, also in float32) or "floats"."""

    def images(array):
        return reference.images_from_nhwc(array, layout)

    def weights(array):
        return reference.weights_from_hwio(array, layout)

    def results(change):
        # Integers are the same in every dtype, and so are their sums.
        found = _oracle(case, kind, "float64" if kind == "integers" else dtype, change)
        turn = {"forward": images, "grad_input": images, "grad_weight": weights}
        return {direction: turn[direction](array) for direction, array in found.items()}

    x, w, grad_y = _arrays(case, kind, dtype)
    return Data(images(x), weights(w), images(grad_y), results(np.positive), lambda: results(np.abs))


def call(case: Case, given: Data, direction: str, **keywords) -> np.ndarray:
    """Run one direction of a case through the public functions."""
    keywords = {**case.arguments, **keywords}
    if direction == "forward":
        return fastconv.conv2d(given.x, given.w, **keywords)
    if direction == "grad_input":
        return fastconv.conv2d_grad_input(given.grad_y, given.w, given.x.shape, **keywords)
    return fastconv.conv2d_grad_weight(given.grad_y, given.x, case.kernel, **keywords)


def tolerance(dtype: str, length: int, magnitude: np.ndarray) -> np.ndarray:
    """The rule for float data: ``2 * eps * sqrt(length) * sum|products|``.

    Rounding `length` partial sums gives errors of at most eps/2 of a partial sum each, none of which exceeds
    sum|products|; of independent sign, they add up like a random walk. The rigorous bound grows with `length`
    itself and would hide slips in the last digits. The factor 2 stands for four standard deviations, and
    leaves room for the reference, which rounds as well when the data are float64.
    """
    return 2 * np.finfo(dtype).eps * np.sqrt(length) * magnitude


def sums_plain_products(case: Case, algorithm: str, direction: str, layout: str, dtype: str) -> bool:
    """Whether an algorithm, or the one that it chooses, sums the plain products of this case."""
    if algorithm == "auto":
        x_shape, w_shape, _ = case.shapes(layout)
        keywords = {"dtype": dtype, "direction": direction, "layout": layout}
        algorithm = fastconv.plan_conv2d(x_shape, w_shape, **case.arguments, **keywords).algorithm
    return algorithm not in INEXACT


def inexact_tolerance(dtype: str, length: int, magnitude: np.ndarray) -> np.ndarray:
    """The rule for transformed data: ``8 * eps * sqrt(length) * max(sum|products|)``, with a length of at least 4.

    Each output mixes all values of its tile, so its error follows the largest of them (docs/design.md, Rounding), and
    transforms round even where a sum has one product: the weight gradient of a single pixel.
    """
    return np.full_like(magnitude, 8 * np.finfo(dtype).eps * np.sqrt(max(length, 4)) * magnitude.max())


def by_name(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)


def compare_integers(case: Case, direction: str, algorithm: str, layout: str, dtype: str) -> bool:
    """Hold a result for integer-valued data against the reference; False where the algorithm declines the problem."""
    given = data(case, "integers", layout, dtype)
    try:
        result = call(case, given, direction, algorithm=algorithm, layout=layout)
    except ValueError as error:
        if algorithm not in str(error):
            raise
        return False
    problem = f"{algorithm} {case.name} {direction} {layout} {dtype}"
    if algorithm in INEXACT:
        limit = inexact_tolerance(dtype, case.reduction_length(direction), given.magnitude[direction])
        assert np.all(np.abs(result - given.expected[direction]) <= limit), problem
    else:
        np.testing.assert_array_equal(result, given.expected[direction], err_msg=problem)
    return True
