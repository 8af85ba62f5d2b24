"""Compiled code only: no checks, no policy; the caller owns every array.

`jit` compiles, `launch` runs, `target` knows the CPU, `simd` holds the vector intrinsics, `params` fills the records
that describe the work; the other modules are kernels:
those of layers, and for signals `signal` with `sums`, on the tiles of `taptile`.
"""
