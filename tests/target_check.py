"""Checks the tail-rich cases in a process of its own: ``python -m tests.target_check``.

Prints, as JSON, the vector bytes of the CPU that Numba compiles for, and how many results were compared.
"""

import json

import numpy as np

from fastconv.kernels.target import vector_bytes

from .cases import DIRECTIONS, DTYPES, INEXACT, LAYOUTS, NAMED, TARGET_CASES, call, data, inexact_tolerance


def main() -> None:
    compared = 0
    for algorithm in NAMED:
        for case in TARGET_CASES:
            for direction in DIRECTIONS:
                for layout in LAYOUTS:
                    for dtype in DTYPES:
                        given = data(case, "integers", layout, dtype)
                        try:
                            result = call(case, given, direction, algorithm=algorithm, layout=layout)
                        except ValueError as error:
                            if algorithm not in str(error):
                                raise
                            continue
                        if algorithm in INEXACT:
                            limit = inexact_tolerance(
                                dtype, case.reduction_length(direction), given.magnitude[direction]
                            )
                            assert np.all(np.abs(result - given.expected[direction]) <= limit)
                            compared += 1
                            continue
                        problem = f"{algorithm} {case.name} {direction} {layout} {dtype}"
                        np.testing.assert_array_equal(result, given.expected[direction], err_msg=problem)
                        compared += 1
    print(json.dumps({"vector_bytes": vector_bytes(), "compared": compared}))


if __name__ == "__main__":
    main()
