"""What arrays may be given and what comes back: memory layouts, dtypes, `out`, batches, NaN."""

import numpy as np
import pytest

import fastconv

from . import reference
from .cases import ALGORITHMS, DIRECTIONS, DTYPES, LAYOUTS, UNIVERSAL, Data, by_name, call, data
from .checks import assert_owned, assert_same_bits
from .memory_layouts import MEMORY_LAYOUTS, every_second

ALWAYS = tuple(name for name in ALGORITHMS if name in UNIVERSAL)
EXACT = tuple(name for name in ALWAYS if name != "auto")

each_algorithm = pytest.mark.parametrize("algorithm", ALWAYS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


@pytest.mark.parametrize("memory", MEMORY_LAYOUTS)
@each_direction
@each_layout
@each_algorithm
def test_memory_layout_does_not_show(algorithm, layout, direction, memory):
    case = by_name("all-together")
    given = data(case, "integers", layout, "float32")
    odd = [MEMORY_LAYOUTS[memory](array) for array in (given.x, given.w, given.grad_y)]
    plain = [np.array(array, "float32", order="C") for array in odd]
    before = [array.tobytes() for array in odd]
    result = call(case, Data(*odd, {}), direction, algorithm=algorithm, layout=layout)
    expected = call(case, Data(*plain, {}), direction, algorithm=algorithm, layout=layout)
    assert_owned(result, "float32")
    assert_same_bits(result, expected)
    assert [array.tobytes() for array in odd] == before


@pytest.mark.parametrize("memory", MEMORY_LAYOUTS)
@each_algorithm
def test_memory_layout_of_bias_does_not_show(algorithm, memory):
    case = by_name("tail-17to31-ow13")
    given = data(case, "integers", "NHWC", "float32")
    bias = np.arange(2 * case.oc, dtype=np.float32).reshape(2, case.oc)
    bias = MEMORY_LAYOUTS[memory](bias)[0] if memory != "every-second" else every_second(bias[0])
    expected = given.expected["forward"] + np.array(bias, np.float64)
    np.testing.assert_array_equal(fastconv.conv2d(given.x, given.w, bias, algorithm=algorithm), expected)


@pytest.mark.parametrize("memory", MEMORY_LAYOUTS)
@each_layout
def test_memory_layout_of_grad_bias_and_prepared_weights_does_not_show(layout, memory):
    case = by_name("all-together")
    given = data(case, "integers", layout, "float32")
    w, grad_y = MEMORY_LAYOUTS[memory](given.w), MEMORY_LAYOUTS[memory](given.grad_y)
    layer = fastconv.prepare_conv2d(w, layout=layout, **case.arguments)
    expected = reference.conv2d(given.x, w, layout=layout, **case.arguments)
    np.testing.assert_array_equal(layer(MEMORY_LAYOUTS["fortran"](given.x)), expected)
    result = fastconv.conv2d_grad_bias(grad_y, layout=layout)
    assert_owned(result, "float32")
    np.testing.assert_array_equal(result, reference.conv2d_grad_bias(grad_y, layout=layout))


@each_direction
@each_layout
@each_algorithm
def test_float16_is_float32_rounded_once(algorithm, layout, direction):
    case = by_name("channels-130to70")
    given = data(case, "floats", layout, "float16")
    wide = Data(*(array.astype(np.float32) for array in (given.x, given.w, given.grad_y)), {})
    result = call(case, given, direction, algorithm=algorithm, layout=layout)
    expected = call(case, wide, direction, algorithm=algorithm, layout=layout)
    assert_owned(result, "float16")
    assert_same_bits(result, expected.astype(np.float16))


@each_algorithm
def test_float16_with_bias_activation_and_out(algorithm):
    case = by_name("all-together")
    given = data(case, "floats", "NHWC", "float16")
    bias = np.linspace(-1, 1, case.oc).astype(np.float16)
    keywords = {"algorithm": algorithm, "activation": "relu", **case.arguments}
    expected = fastconv.conv2d(
        given.x.astype(np.float32), given.w.astype(np.float32), bias.astype(np.float32), **keywords
    )
    out = np.empty(expected.shape, np.float16)
    assert fastconv.conv2d(given.x, given.w, bias, out=out, **keywords) is out
    assert_same_bits(out, expected.astype(np.float16))


def fenced(array):
    """The array amid NaN, and the memory that holds both."""
    margin = 64
    memory = np.full(array.size + 2 * margin, np.nan, array.dtype)
    inside = memory[margin:-margin].reshape(array.shape)
    inside[...] = array
    return inside, memory


@pytest.mark.parametrize("dtype", ["float16", *DTYPES])
@pytest.mark.parametrize("name", ["all-together", "tail-oc17", "tail-ic33", "tail-ow15", "depthwise", "batch"])
@each_direction
@each_layout
@each_algorithm
def test_out_is_filled_and_nothing_around_the_arrays_matters(algorithm, layout, direction, name, dtype):
    case = by_name(name)
    given = data(case, "integers", layout, dtype)
    expected = given.expected[direction].astype(dtype)
    operands = [fenced(array)[0] for array in (given.x, given.w, given.grad_y)]
    out, memory = fenced(np.full(expected.shape, np.nan, dtype))
    around = np.isnan(memory).sum() - expected.size
    result = call(case, Data(*operands, {}), direction, algorithm=algorithm, layout=layout, out=out)
    assert result is out
    np.testing.assert_array_equal(out, expected)
    assert np.isnan(memory).sum() == around


@pytest.mark.parametrize("memory", ["reversed", "every-second", "fortran", "other-layout", "misaligned"])
@each_direction
@each_layout
def test_memory_layout_of_out_does_not_show(layout, direction, memory):
    case = by_name("all-together")
    given = data(case, "integers", layout, "float32")
    expected = given.expected[direction]
    out = MEMORY_LAYOUTS[memory](np.full(expected.shape, np.nan, np.float32))
    assert call(case, given, direction, layout=layout, out=out) is out
    np.testing.assert_array_equal(out, expected)


@each_direction
def test_out_is_native_where_operands_are_byte_swapped(direction):
    case = by_name("all-together")
    given = data(case, "integers", "NHWC", "float32")
    swapped = Data(*(a.astype(a.dtype.newbyteorder()) for a in (given.x, given.w, given.grad_y)), {})
    out = np.empty(given.expected[direction].shape, np.float32)
    assert call(case, swapped, direction, out=out) is out
    np.testing.assert_array_equal(out, given.expected[direction])


@each_layout
@each_algorithm
def test_missing_batch_axis(algorithm, layout):
    case = by_name("dilated-stride")
    given = data(case, "integers", layout, "float32")
    single = Data(given.x[0], given.w, given.grad_y[0], {})
    for direction in DIRECTIONS:
        result = call(case, single, direction, algorithm=algorithm, layout=layout)
        expected = given.expected[direction]
        assert_owned(result, "float32")
        np.testing.assert_array_equal(result, expected if direction == "grad_weight" else expected[0])
    out = np.empty(given.grad_y.shape[1:], np.float32)
    assert call(case, single, "forward", algorithm=algorithm, layout=layout, out=out) is out
    np.testing.assert_array_equal(out, given.expected["forward"][0])
    dx, dw, db = fastconv.conv2d_backward(
        single.grad_y, single.x, single.w, layout=layout, algorithm=algorithm, **case.arguments
    )
    np.testing.assert_array_equal(dx, given.expected["grad_input"][0])
    np.testing.assert_array_equal(dw, given.expected["grad_weight"])
    np.testing.assert_array_equal(db, reference.conv2d_grad_bias(given.grad_y, layout=layout))
    np.testing.assert_array_equal(db, fastconv.conv2d_grad_bias(single.grad_y, layout=layout))


@pytest.mark.parametrize("dtype", ["float16", *DTYPES])
@each_layout
@each_algorithm
def test_empty_batch(algorithm, layout, dtype):
    case = by_name("all-together")
    full = data(case, "integers", layout, dtype)
    empty = Data(full.x[:0], full.w, full.grad_y[:0], {})
    forward = call(case, empty, "forward", algorithm=algorithm, layout=layout, activation="relu")
    assert_owned(forward, dtype)
    assert forward.shape == empty.grad_y.shape
    dx = call(case, empty, "grad_input", algorithm=algorithm, layout=layout)
    assert_owned(dx, dtype)
    assert dx.shape == empty.x.shape
    dw = call(case, empty, "grad_weight", algorithm=algorithm, layout=layout)
    assert_owned(dw, dtype)
    np.testing.assert_array_equal(dw, np.zeros_like(full.w))
    db = fastconv.conv2d_grad_bias(empty.grad_y, layout=layout)
    np.testing.assert_array_equal(db, np.zeros(case.oc, dtype))
    joint = fastconv.conv2d_backward(
        empty.grad_y, empty.x, empty.w, layout=layout, algorithm=algorithm, **case.arguments
    )
    for result, expected in zip(joint, (dx, dw, db), strict=True):
        np.testing.assert_array_equal(result, expected)


@each_algorithm
def test_empty_batch_clears_out_of_the_weight_gradient(algorithm):
    grad_y, x = np.empty((0, 4, 4, 3), np.float32), np.empty((0, 5, 5, 2), np.float32)
    out = np.full((2, 2, 2, 3), np.nan, np.float32)
    fastconv.conv2d_grad_weight(grad_y, x, (2, 2), algorithm=algorithm, out=out)
    np.testing.assert_array_equal(out, np.zeros((2, 2, 2, 3)))


SPREAD_CASES = (
    "tail-17to31-ow13",
    "tail-33to65-ow15",
    "all-together",
    "depthwise",
    "groups-of-17",
    "stride-beyond-kernel",
    "padding-asymmetric",
    "full-dilated",
    "channels-130to70",
)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", SPREAD_CASES)
@each_direction
@pytest.mark.parametrize("algorithm", EXACT)
def test_nan_and_inf_reach_just_what_reads_them(algorithm, direction, name, value):
    case = by_name(name)
    given = data(case, "floats", "NHWC", "float32")
    source = "grad_y" if direction == "grad_input" else "x"
    clean = getattr(given, source)
    for index in (
        (0, 0, 0, 0),
        tuple(size // 2 for size in clean.shape),
        tuple(size - 1 for size in clean.shape),
    ):
        dirty = clean.copy()
        dirty[index] = value
        arrays = {"x": given.x, "w": given.w, "grad_y": given.grad_y, source: dirty}
        result = call(case, Data(**arrays, expected={}), direction, algorithm=algorithm)
        with np.errstate(invalid="ignore"):
            expected = {
                "forward": lambda a: reference.conv2d(a["x"], a["w"], **case.arguments),
                "grad_input": lambda a: reference.conv2d_grad_input(
                    a["grad_y"], a["w"], a["x"].shape, **case.arguments
                ),
                "grad_weight": lambda a: reference.conv2d_grad_weight(
                    a["grad_y"], a["x"], case.kernel, **case.arguments
                ),
            }[direction](arrays)
        touched = ~np.isfinite(expected)
        np.testing.assert_array_equal(~np.isfinite(result), touched)
        np.testing.assert_array_equal(result[touched], expected[touched])
