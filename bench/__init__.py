"""Benchmarks of fastconv: one table of cases, one way of timing, and four faces on top of them.

=================================  =====================================================================
``python -m bench``                the headline: a dense layer of 10^9 weights against small convolutions
``python -m bench.peers``          fastconv against every installed library, by class of problems
``pytest --benchmark-only``        the same cases in pytest-benchmark, algorithms and peers side by side
``asv run``                        time, memory, compile and import time from commit to commit
=================================  =====================================================================

asv imports every module of this package and takes each function and class whose name begins like a benchmark's
(``time_``, ``Time``, ``mem_``, ``Mem``, ``peakmem_``, ``track_`` and so on) for one. Helpers carry other names, and
modules import the libraries of the ``bench`` extra inside the functions that use them.
"""
