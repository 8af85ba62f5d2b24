"""Every error of the contract: its type, the argument and what was given in its message, `out` left alone."""

import numpy as np
import pytest

import fastconv

from .cases import NAMED, UNIVERSAL

X = np.ones((2, 8, 9, 4), np.float32)
W = np.ones((3, 3, 4, 6), np.float32)
BIAS = np.ones(6, np.float32)
GRAD_Y = np.ones((2, 6, 7, 6), np.float32)


def no_numba(value):
    return value


FUNCTIONS = {
    "conv2d": (fastconv.conv2d, {"x": X, "w": W, "bias": BIAS}),
    "conv2d_grad_input": (fastconv.conv2d_grad_input, {"grad_y": GRAD_Y, "w": W, "input_shape": X.shape}),
    "conv2d_grad_weight": (fastconv.conv2d_grad_weight, {"grad_y": GRAD_Y, "x": X, "kernel_size": (3, 3)}),
    "conv2d_grad_bias": (fastconv.conv2d_grad_bias, {"grad_y": GRAD_Y}),
    "conv2d_backward": (fastconv.conv2d_backward, {"grad_y": GRAD_Y, "x": X, "w": W}),
    "prepare_conv2d": (fastconv.prepare_conv2d, {"w": W, "bias": BIAS, "input_shape": X.shape}),
    "plan_conv2d": (fastconv.plan_conv2d, {"x_shape": X.shape, "w_shape": W.shape}),
}
RESULT_SHAPES = {
    "conv2d": GRAD_Y.shape,
    "conv2d_grad_input": X.shape,
    "conv2d_grad_weight": W.shape,
}
WITH_GEOMETRY = [name for name in FUNCTIONS if name != "conv2d_grad_bias"]


def refused(name, error, words, **changed):
    """Check the error for the changed arguments, and that `out` is as it was where the function takes one."""
    function, arguments = FUNCTIONS[name]
    arguments = {**arguments, **changed}
    out = np.full(RESULT_SHAPES[name], 7, np.float32) if name in RESULT_SHAPES else None
    if out is not None:
        arguments = {"out": out, **arguments}
    with pytest.raises(error) as caught:
        function(**arguments)
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in {str(caught.value)!r}"
    assert out is None or (out == 7).all()


GEOMETRY_ERRORS = [
    ("stride", 0, ValueError, "0"),
    ("stride", -2, ValueError, "-2"),
    ("stride", (1,), ValueError, "(1,)"),
    ("stride", (1, 2, 3), ValueError, "(1, 2, 3)"),
    ("stride", (1, 0), ValueError, "0"),
    ("stride", 1.5, TypeError, "1.5"),
    ("stride", (1, 2.0), TypeError, "2.0"),
    ("stride", True, TypeError, "True"),
    ("stride", "2", TypeError, "'2'"),
    ("stride", None, TypeError, "None"),
    ("dilation", 0, ValueError, "0"),
    ("dilation", (-1, 1), ValueError, "-1"),
    ("dilation", (1, 2, 3), ValueError, "(1, 2, 3)"),
    ("dilation", 2.0, TypeError, "2.0"),
    ("dilation", False, TypeError, "False"),
    ("dilation", "same", TypeError, "'same'"),
    ("padding", -1, ValueError, "-1"),
    ("padding", (1,), ValueError, "(1,)"),
    ("padding", (1, 2, 3), ValueError, "(1, 2, 3)"),
    ("padding", (1, 2, 3, 4), ValueError, "(1, 2, 3, 4)"),
    ("padding", ((1, 2),), ValueError, "((1, 2),)"),
    ("padding", ((1, 2), (3,)), ValueError, "(3,)"),
    ("padding", ((0, -3), (0, 0)), ValueError, "-3"),
    ("padding", "SAME", ValueError, "'SAME'"),
    ("padding", "circular", ValueError, "'circular'"),
    ("padding", 1.0, TypeError, "1.0"),
    ("padding", ((0, 1), (0.5, 1)), TypeError, "0.5"),
    ("padding", True, TypeError, "True"),
    ("padding", None, TypeError, "None"),
    ("groups", 0, ValueError, "0"),
    ("groups", -1, ValueError, "-1"),
    ("groups", 3, ValueError, "3"),
    ("groups", 1.0, TypeError, "1.0"),
    ("groups", True, TypeError, "True"),
    ("groups", (1, 1), TypeError, "(1, 1)"),
    ("groups", "2", TypeError, "'2'"),
    ("layout", "NHCW", ValueError, "'NHCW'"),
    ("layout", "nhwc", ValueError, "'nhwc'"),
    ("layout", None, TypeError, "None"),
    ("algorithm", "fastest", ValueError, "'fastest'"),
    ("algorithm", "", ValueError, "''"),
    ("algorithm", None, TypeError, "None"),
    ("algorithm", 3, TypeError, "3"),
]


@pytest.mark.parametrize(("argument", "value", "error", "shown"), GEOMETRY_ERRORS)
@pytest.mark.parametrize("name", WITH_GEOMETRY)
def test_geometry(name, argument, value, error, shown):
    refused(name, error, (argument, shown), **{argument: value})


@pytest.mark.parametrize("layout", ["NHCW", None])
def test_layout_of_the_bias_gradient(layout):
    refused("conv2d_grad_bias", ValueError if layout else TypeError, ("layout", repr(layout)), layout=layout)


def test_unknown_algorithm_is_told_which_there_are():
    refused("conv2d", ValueError, ("algorithm", "winograd3", *NAMED), algorithm="winograd3")


TAKEN_ARRAYS = [
    ("conv2d", "x"),
    ("conv2d", "w"),
    ("conv2d", "bias"),
    ("conv2d_grad_input", "grad_y"),
    ("conv2d_grad_input", "w"),
    ("conv2d_grad_weight", "grad_y"),
    ("conv2d_grad_weight", "x"),
    ("conv2d_grad_bias", "grad_y"),
    ("conv2d_backward", "grad_y"),
    ("conv2d_backward", "x"),
    ("conv2d_backward", "w"),
    ("prepare_conv2d", "w"),
    ("prepare_conv2d", "bias"),
]


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64", "object", "longdouble", "U4"])
@pytest.mark.parametrize(("name", "argument"), TAKEN_ARRAYS)
def test_dtype_that_is_not_supported(name, argument, dtype):
    given = FUNCTIONS[name][1][argument].astype(dtype)
    refused(name, TypeError, (argument, given.dtype.name, "float32"), **{argument: given})


@pytest.mark.parametrize(("name", "argument"), TAKEN_ARRAYS)
@pytest.mark.parametrize("value", ["image", {"pixels": 3}, object()], ids=type)
def test_value_that_is_no_array(name, argument, value):
    refused(name, TypeError, (argument,), **{argument: value})


@pytest.mark.parametrize(("name", "argument"), [pair for pair in TAKEN_ARRAYS if pair[0] != "conv2d_grad_bias"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_operands_of_two_dtypes(name, argument, dtype):
    given = FUNCTIONS[name][1][argument].astype(dtype)
    refused(name, TypeError, (argument, dtype, "float32"), **{argument: given})


@pytest.mark.parametrize("axes", [0, 1, 2, 5])
@pytest.mark.parametrize(("name", "argument"), [pair for pair in TAKEN_ARRAYS if pair[1] != "bias"])
def test_wrong_number_of_axes(name, argument, axes):
    shape = (2,) * axes
    refused(name, ValueError, (argument, str(shape)), **{argument: np.ones(shape, np.float32)})


def test_weights_without_one_axis():
    for name in ("conv2d", "conv2d_grad_input", "conv2d_backward", "prepare_conv2d"):
        refused(name, ValueError, ("w", "(3, 4, 6)"), w=W[0])


@pytest.mark.parametrize(
    ("name", "words", "changed"),
    [
        ("conv2d", ("x", "w", "5", "4"), {"x": np.ones((2, 8, 9, 5), np.float32)}),
        ("conv2d", ("w", "x", "3", "4"), {"w": np.ones((3, 3, 3, 6), np.float32)}),
        ("conv2d", ("groups", "2", "4"), {"groups": 2}),
        ("conv2d", ("bias", "(5,)", "(6,)"), {"bias": BIAS[:5]}),
        ("conv2d", ("bias", "(6, 1)", "(6,)"), {"bias": BIAS[:, None]}),
        ("conv2d", ("bias", "()", "(6,)"), {"bias": np.float32(1)}),
        ("conv2d", ("x", "w", "(2, 2, 9, 4)"), {"x": X[:, :2]}),
        ("conv2d", ("x", "w", "(2, 8, 2, 4)"), {"x": X[:, :, :2]}),
        ("conv2d", ("w", "dilation", "9", "8"), {"dilation": 4}),
        ("conv2d", ("x", "(2, 0, 9, 4)"), {"x": X[:, :0]}),
        ("conv2d", ("x", "(2, 8, 9, 0)"), {"x": X[..., :0], "w": W[:, :, :0]}),
        ("conv2d", ("w", "(0, 3, 4, 6)"), {"w": W[:0]}),
        ("conv2d", ("w", "(3, 3, 4, 0)"), {"w": W[..., :0], "bias": None}),
        ("conv2d", ("x", "w", "9", "4"), {"layout": "NCHW", "w": np.ones((6, 4, 3, 3), np.float32)}),
        ("conv2d_grad_input", ("grad_y", "(2, 6, 6, 6)", "(2, 6, 7, 6)"), {"grad_y": GRAD_Y[:, :, :6]}),
        ("conv2d_grad_input", ("grad_y", "(1, 6, 7, 6)", "(2, 6, 7, 6)"), {"grad_y": GRAD_Y[:1]}),
        ("conv2d_grad_input", ("grad_y", "(2, 6, 7, 5)", "(2, 6, 7, 6)"), {"grad_y": GRAD_Y[..., :5]}),
        ("conv2d_grad_input", ("grad_y", "(6, 7, 6)"), {"grad_y": GRAD_Y[0]}),
        ("conv2d_grad_input", ("grad_y", "(2, 6, 7, 6)"), {"input_shape": (2, 9, 9, 4)}),
        ("conv2d_grad_input", ("input_shape", "5", "4"), {"input_shape": (2, 8, 9, 5)}),
        ("conv2d_grad_input", ("input_shape", "(8, 9)"), {"input_shape": (8, 9)}),
        ("conv2d_grad_input", ("input_shape", "-8"), {"input_shape": (2, -8, 9, 4)}),
        ("conv2d_grad_input", ("input_shape", "(2, 2, 9, 4)"), {"input_shape": (2, 2, 9, 4)}),
        ("conv2d_grad_weight", ("grad_y", "(2, 5, 7, 6)", "(2, 6, 7, 6)"), {"grad_y": GRAD_Y[:, :5]}),
        ("conv2d_grad_weight", ("grad_y", "(1, 6, 7, 6)", "(2, 6, 7, 6)"), {"grad_y": GRAD_Y[:1]}),
        ("conv2d_grad_weight", ("grad_y", "(2, 6, 7, 6)"), {"kernel_size": (3, 4)}),
        ("conv2d_grad_weight", ("kernel_size", "(3,)"), {"kernel_size": (3,)}),
        ("conv2d_grad_weight", ("kernel_size", "(3, 3, 3)"), {"kernel_size": (3, 3, 3)}),
        ("conv2d_grad_weight", ("kernel_size", "0"), {"kernel_size": (0, 3)}),
        ("conv2d_grad_weight", ("kernel_size", "-3"), {"kernel_size": -3}),
        ("conv2d_grad_weight", ("kernel_size", "9", "8"), {"kernel_size": (9, 3)}),
        ("conv2d_backward", ("grad_y", "(2, 6, 7, 5)", "(2, 6, 7, 6)"), {"grad_y": GRAD_Y[..., :5]}),
        ("conv2d_backward", ("x", "w", "3", "4"), {"x": X[..., :3]}),
        ("conv2d_backward", ("needs", "(True, False)"), {"needs": (True, False)}),
        ("prepare_conv2d", ("bias", "(5,)", "(6,)"), {"bias": BIAS[:5]}),
        ("prepare_conv2d", ("input_shape", "5", "4"), {"input_shape": (2, 8, 9, 5)}),
        ("prepare_conv2d", ("input_shape", "(8, 9)"), {"input_shape": (8, 9)}),
        ("plan_conv2d", ("x_shape", "(8, 9)"), {"x_shape": (8, 9)}),
        ("plan_conv2d", ("x_shape", "-1"), {"x_shape": (-1, 8, 9, 4)}),
        ("plan_conv2d", ("w_shape", "(3, 3)"), {"w_shape": (3, 3)}),
        ("plan_conv2d", ("x_shape", "w_shape", "5", "4"), {"x_shape": (2, 8, 9, 5)}),
        ("plan_conv2d", ("stride", "x_shape", "(1, 8, 1048576, 4)"), {"x_shape": (1, 8, 2**20, 4), "stride": 2**40}),
        ("plan_conv2d", ("direction", "'backward'"), {"direction": "backward"}),
    ],
)
def test_values_and_shapes_that_do_not_fit(name, words, changed):
    refused(name, ValueError, words, **changed)


@pytest.mark.parametrize(
    ("name", "words", "changed"),
    [
        ("conv2d", ("activation", "3"), {"activation": 3}),
        ("conv2d", ("activation", "no_numba", "njit"), {"activation": no_numba}),
        ("prepare_conv2d", ("activation", "no_numba", "njit"), {"activation": no_numba}),
        ("conv2d_grad_input", ("input_shape", "None"), {"input_shape": None}),
        ("conv2d_grad_input", ("input_shape", "72"), {"input_shape": 72}),
        ("conv2d_grad_input", ("input_shape", "8.0"), {"input_shape": (2, 8.0, 9, 4)}),
        ("conv2d_grad_weight", ("kernel_size", "3.0"), {"kernel_size": 3.0}),
        ("conv2d_grad_weight", ("kernel_size", "'3x3'"), {"kernel_size": "3x3"}),
        ("conv2d_grad_weight", ("kernel_size", "None"), {"kernel_size": None}),
        ("plan_conv2d", ("x_shape", "9.5"), {"x_shape": (2, 8, 9.5, 4)}),
        ("plan_conv2d", ("x_shape", "None"), {"x_shape": None}),
        ("plan_conv2d", ("dtype", "int32"), {"dtype": "int32"}),
        ("plan_conv2d", ("dtype", "single-ish"), {"dtype": "single-ish"}),
        ("plan_conv2d", ("direction", "None"), {"direction": None}),
    ],
)
def test_types_that_do_not_fit(name, words, changed):
    refused(name, TypeError, words, **changed)


@pytest.mark.parametrize("name", ["conv2d", "prepare_conv2d"])
@pytest.mark.parametrize("activation", ["softmax", "ReLU", ""])
def test_unknown_activation(name, activation):
    refused(name, ValueError, ("activation", repr(activation), "relu"), activation=activation)


@pytest.mark.parametrize("algorithm", UNIVERSAL)
@pytest.mark.parametrize("name", RESULT_SHAPES)
def test_out_that_does_not_fit(name, algorithm):
    function, arguments = FUNCTIONS[name]
    shape = RESULT_SHAPES[name]
    read_only = np.full(shape, 7, np.float32)
    read_only.setflags(write=False)
    for out, error, words in (
        (np.full((*shape[:-1], shape[-1] + 1), 7, np.float32), ValueError, (str(shape),)),
        (np.full(shape[1:], 7, np.float32), ValueError, (str(shape), str(shape[1:]))),
        (np.full(shape, 7, np.float64), TypeError, ("float32", "float64")),
        (np.full(shape, 7, np.float16), TypeError, ("float32", "float16")),
        (read_only, ValueError, ("read-only",)),
        (np.full(shape, 7, np.float32).tolist(), TypeError, ("list",)),
    ):
        with pytest.raises(error) as caught:
            function(**arguments, algorithm=algorithm, out=out)
        for word in ("out", *words):
            assert word in str(caught.value)
        assert (np.asarray(out) == 7).all()


@pytest.mark.parametrize(
    ("name", "operand"),
    [
        ("conv2d", "x"),
        ("conv2d", "w"),
        ("conv2d", "bias"),
        ("conv2d_grad_input", "grad_y"),
        ("conv2d_grad_input", "w"),
        ("conv2d_grad_weight", "grad_y"),
        ("conv2d_grad_weight", "x"),
    ],
)
def test_out_that_overlaps_an_operand(name, operand):
    function, arguments = FUNCTIONS[name]
    given, size = arguments[operand], int(np.prod(RESULT_SHAPES[name]))
    memory = np.ones(given.size + size - 1, np.float32)
    overlapping = {operand: memory[: given.size].reshape(given.shape)}
    out = memory[given.size - 1 :].reshape(RESULT_SHAPES[name])
    with pytest.raises(ValueError, match="out") as caught:
        function(**{**arguments, **overlapping}, out=out)
    assert operand in str(caught.value)
    assert (memory == 1).all()


@pytest.mark.parametrize("input_shape", [None, X.shape])
def test_prepared_layer_checks_its_input(input_shape):
    layer = fastconv.prepare_conv2d(W, BIAS, input_shape=input_shape)
    out = np.full(GRAD_Y.shape, 7, np.float32)
    for x, error, words in (
        (X[..., :3], ValueError, ("x", "3", "4")),
        (X[0, 0], ValueError, ("x", "(9, 4)")),
        (X[:, :2], ValueError, ("x", "(2, 2, 9, 4)")),
        (X.astype(np.float64), TypeError, ("x", "float64", "float32")),
        (X.astype(int), TypeError, ("x", "int64")),
        ("image", TypeError, ("x",)),
    ):
        with pytest.raises(error) as caught:
            layer(x, out=out)
        for word in words:
            assert word in str(caught.value)
        assert (out == 7).all()
    with pytest.raises(ValueError, match="out"):
        layer(X, out=out[:1])


@pytest.mark.parametrize("name", RESULT_SHAPES)
def test_arguments_equal_to_those_of_an_earlier_call_are_checked(name):
    """True and 1.0 equal 1 and have its hash: calls are remembered, and must not be taken for each other."""
    function, arguments = FUNCTIONS[name]
    function(**arguments, stride=1, padding=0)
    function(**arguments, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1)
    for argument in ("stride", "dilation", "groups"):
        refused(name, TypeError, (argument, "True"), **{argument: True})
        refused(name, TypeError, (argument, "1.0"), **{argument: 1.0})
    refused(name, TypeError, ("stride", "True"), stride=(1, True))
    refused(name, TypeError, ("padding", "False"), padding=False)
    refused(name, TypeError, ("padding", "0.0"), padding=((0, 0), (0, 0.0)))
    own = {"conv2d_grad_input": "input_shape", "conv2d_grad_weight": "kernel_size"}.get(name)
    if own:
        refused(name, TypeError, (own,), **{own: tuple(float(size) for size in arguments[own])})


@pytest.mark.parametrize("name", RESULT_SHAPES)
def test_arrays_like_those_of_an_earlier_call_are_checked(name):
    function, arguments = FUNCTIONS[name]
    arguments = {key: value for key, value in arguments.items() if key != "bias"}
    first, second = [key for key, value in arguments.items() if isinstance(value, np.ndarray)]
    expected = function(**arguments)
    refused(name, TypeError, (second, "float64"), **arguments | {second: arguments[second].astype(np.float64)})
    refused(name, TypeError, (second, "masked"), **arguments | {second: np.ma.array(arguments[second])})
    memory = np.zeros(arguments[first].size + expected.size, np.float32)
    memory[: arguments[first].size] = arguments[first].ravel()
    operand, beside = memory[: arguments[first].size].reshape(arguments[first].shape), memory[-expected.size :]
    function(**arguments | {first: operand}, out=beside.reshape(expected.shape))
    assert (beside == expected.ravel()).all()
    assert (operand == arguments[first]).all()
    overlapping = memory[-expected.size - 1 : -1].reshape(expected.shape)
    with pytest.raises(ValueError, match="overlap"):
        function(**arguments | {first: operand}, out=overlapping)
    view = expected.copy().view()  # of an array that nothing else refers to
    function(**arguments, out=view)
    assert (view == expected).all()
