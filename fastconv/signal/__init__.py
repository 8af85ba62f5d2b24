"""Convolution as mathematics defines it, with a flip, and correlation without, as SciPy has them."""

from fastconv.signal.functions import convolve, convolve2d, correlate, correlate2d

__all__ = ["convolve", "convolve2d", "correlate", "correlate2d"]
