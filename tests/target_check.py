"""Checks the tail-rich cases in a process of its own: ``python -m tests.target_check``.

Prints, as JSON, the vector bytes of the CPU that Numba compiles for, and how many results were compared.
"""

import json

import numpy as np

from fastconv.kernels.target import vector_bytes

from .cases import DIRECTIONS, DTYPES, INEXACT, LAYOUTS, NAMED, TARGET_CASES, call, data, inexact_tolerance

COMBINATIONS = 2
"""Layouts and dtypes of each case: both of both, but not all four, as compiling for a CPU takes minutes."""


def main() -> None:
    compared = 0
    for algorithm in NAMED:
        for number, case in enumerate(TARGET_CASES):
            dtypes = DTYPES if number % 2 else DTYPES[::-1]
            for direction in DIRECTIONS:
                for layout, dtype in zip(LAYOUTS, dtypes, strict=True):
                    given = data(case, "integers", layout, dtype)
                    try:
                        result = call(case, given, direction, algorithm=algorithm, layout=layout)
                    except ValueError as error:
                        if algorithm not in str(error):
                            raise
                        continue
                    compared += 1
                    if algorithm in INEXACT:
                        limit = inexact_tolerance(dtype, case.reduction_length(direction), given.magnitude[direction])
                        assert np.all(np.abs(result - given.expected[direction]) <= limit)
                        continue
                    problem = f"{algorithm} {case.name} {direction} {layout} {dtype}"
                    np.testing.assert_array_equal(result, given.expected[direction], err_msg=problem)
    print(json.dumps({"vector_bytes": vector_bytes(), "compared": compared}))


if __name__ == "__main__":
    main()
