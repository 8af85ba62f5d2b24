"""Compiled code only: no checks, no policy; the caller owns every array.

`jit` compiles, `launch` runs, `target` knows the CPU, `simd` holds the vector intrinsics, `params` fills the records
that describe the work; the other modules are kernels. Those for signals are `signal` with `sums`, on the tiles of
`taptile`, and `fourier`.
"""
