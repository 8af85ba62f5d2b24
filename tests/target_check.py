"""Checks the tail-rich cases in a process of its own: ``python -m tests.target_check --every 1``.

Prints, as JSON, the vector bytes of the CPU that Numba compiles for, and how many cases and results were compared.
"""

import argparse
import json

from fastconv.kernels.target import vector_bytes

from .cases import DIRECTIONS, NAMED, TARGET_CASES, compare_integers
from .extent import combinations, cross_section

EVERY = 16
"""Of the cases, as compiling for a CPU takes minutes."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.target_check")
    parser.add_argument("--every", type=int, default=EVERY, help=f"take every n-th case ({EVERY})")
    cases = cross_section(TARGET_CASES, parser.parse_args().every)
    compared = 0
    for algorithm in [name for name in NAMED if name != "naive"]:  # whose plain loops know no vectors
        for number, case in enumerate(cases):
            for direction in DIRECTIONS:
                for layout, dtype in combinations(number):
                    compared += compare_integers(case, direction, algorithm, layout, dtype)
    print(json.dumps({"vector_bytes": vector_bytes(), "cases": len(cases), "compared": compared}))


if __name__ == "__main__":
    main()
