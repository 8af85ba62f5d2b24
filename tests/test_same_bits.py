"""A result is a function of its operands' values alone: not of the batch, the neighbours, addresses or the run."""

import math

import numpy as np
import pytest

import fastconv
from fastconv.algorithms import transposed

from .cases import DIRECTIONS, LAYOUTS, NAMED, UNIVERSAL, Data, by_name, call, data
from .checks import assert_same_bits
from .soak import forget_plans

SHAPES = (
    "threads-batch",
    "threads-depth-multiplier",
    "all-together-wide",
    "threads-winograd-batch",
    "threads-winograd-slabs",
    "threads-winograd-k5-batch",
    "threads-winograd-dilated",
    "tail-17to31-ow13",
    "threads-planes-stride2",
    "threads-blocks",
    "threads-blocks-depthwise",
)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_shape = pytest.mark.parametrize("name", SHAPES)


def results(name, given, layout, direction):
    """The result of every algorithm that takes the case, by name; `auto` may change its mind and is left out."""
    found = {}
    for algorithm in NAMED:
        if algorithm == "naive" and name.startswith("threads-blocks"):
            continue  # it has no blocks, and takes most of a minute here
        try:
            found[algorithm] = call(by_name(name), given, direction, algorithm=algorithm, layout=layout)
        except ValueError:
            assert algorithm not in UNIVERSAL
    return found


def with_operands(change, given):
    """The data with its operands changed."""
    return Data(*(change(array) for array in (given.x, given.w, given.grad_y)), {})


@each_shape
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
@each_layout
def test_image_alone_in_another_batch_and_beside_nan(layout, direction, name):
    given = data(by_name(name), "floats", layout, "float32")
    together = results(name, given, layout, direction)
    chosen = len(given.x) // 2

    def alone(array):
        return array if array is given.w else array[chosen : chosen + 1]

    def among_nan(array):
        if array is given.w:
            return array
        mixed = np.full((3, *array.shape[1:]), np.nan, array.dtype)
        mixed[1] = array[chosen]
        return mixed

    for algorithm, result in results(name, with_operands(alone, given), layout, direction).items():
        assert_same_bits(result[0], together[algorithm][chosen])
    for algorithm, result in results(name, with_operands(among_nan, given), layout, direction).items():
        assert_same_bits(result[1], together[algorithm][chosen])


@each_shape
@pytest.mark.parametrize("direction", DIRECTIONS)
@each_layout
def test_addresses_and_runs(layout, direction, name):
    given = data(by_name(name), "floats", layout, "float32")
    first = results(name, given, layout, direction)
    rng = np.random.default_rng(5)

    def moved(array):
        """Somewhere else within a cache line."""
        memory = np.empty(array.size + 16, array.dtype)
        offset = int(rng.integers(16))
        copy = memory[offset : offset + array.size].reshape(array.shape)
        copy[...] = array
        return copy

    for _ in range(2):
        for algorithm, result in results(name, with_operands(moved, given), layout, direction).items():
            assert_same_bits(result, first[algorithm])


@pytest.mark.parametrize("algorithm", ["winograd", "direct"])
def test_bands_of_one_image_and_of_a_batch(algorithm, monkeypatch):
    """More images may take more scratch: their bands must not begin at other rows, where tiles would lie otherwise."""

    def half(problem, threads):
        arrays = (problem.x_shape, problem.w_shape, problem.y_shape)
        return 0.5 * problem.itemsize * sum(math.prod(shape) for shape in arrays)

    monkeypatch.setattr(transposed, "scratch_limit", half)
    forget_plans()
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 16, 30, 31), np.float32)
    w = rng.standard_normal((17, 16, 3, 3), np.float32)
    keywords = {"padding": "same", "layout": "NCHW", "algorithm": algorithm}
    together = fastconv.conv2d(x, w, **keywords)
    alone = np.concatenate([fastconv.conv2d(x[k : k + 1], w, **keywords) for k in range(4)])
    forget_plans()
    assert_same_bits(together, alone)
