"""The public face: names, signatures, version and the examples in the docstrings."""

import doctest
import importlib.metadata
import inspect

import pytest

import fastconv

from .process import run_python

GEOMETRY = "stride=1, padding=0, dilation=1, groups=1, layout='NHWC', algorithm='auto'"
LOCAL_GEOMETRY = "stride=1, padding=0, dilation=1, layout='NHWC'"
SIGNATURES = {
    "conv2d": f"(x, w, bias=None, *, {GEOMETRY}, activation=None, out=None)",
    "conv2d_grad_input": f"(grad_y, w, input_shape, *, {GEOMETRY}, out=None)",
    "conv2d_grad_weight": f"(grad_y, x, kernel_size, *, {GEOMETRY}, out=None)",
    "conv2d_grad_bias": "(grad_y, *, layout='NHWC')",
    "conv2d_backward": f"(grad_y, x, w, *, needs=(True, True, True), {GEOMETRY})",
    "local2d": f"(x, w, bias=None, *, {LOCAL_GEOMETRY}, out=None)",
    "local2d_grad_input": f"(grad_y, w, input_shape, *, {LOCAL_GEOMETRY}, out=None)",
    "local2d_grad_weight": f"(grad_y, x, kernel_size, *, {LOCAL_GEOMETRY}, out=None)",
    "local2d_grad_bias": "(grad_y, *, layout='NHWC')",
    "prepare_conv2d": f"(w, bias=None, *, input_shape=None, {GEOMETRY}, activation=None)",
    "plan_conv2d": f"(x_shape, w_shape, *, dtype='float32', direction='forward', {GEOMETRY})",
    "conv2d_algorithms": "()",
    "convolve": "(in1, in2, mode='full', method='auto', *, boundary=None, fillvalue=None)",
    "correlate": "(in1, in2, mode='full', method='auto', *, boundary=None, fillvalue=None)",
    "convolve2d": "(in1, in2, mode='full', boundary='fill', fillvalue=0)",
    "correlate2d": "(in1, in2, mode='full', boundary='fill', fillvalue=0)",
    "dense": "(x, w, bias=None, *, activation=None, out=None)",
    "dense_grad_input": "(grad_y, w, *, out=None)",
    "dense_grad_weight": "(grad_y, x, *, out=None)",
}


def without_annotations(function) -> inspect.Signature:
    signature = inspect.signature(function)
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)


def by_kind(signature: inspect.Signature) -> tuple[list, dict]:
    """The positional parameters in order, and the keyword-only ones, whose order does not matter."""
    parameters = signature.parameters.values()
    positional = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert len(positional) + len(keywords) == len(signature.parameters)
    return positional, keywords


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    expected: dict = {}
    exec(f"def function{SIGNATURES[name]}: pass", expected)
    found = without_annotations(getattr(fastconv, name))
    assert by_kind(found) == by_kind(inspect.signature(expected["function"]))


def test_public_index_holds_every_name():
    assert set(SIGNATURES) | {"__version__"} <= {*fastconv.__all__, "__version__"}
    for name in fastconv.__all__:
        assert hasattr(fastconv, name), name
    assert len(set(fastconv.__all__)) == len(fastconv.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_public_functions_are_documented_with_examples_that_run(name):
    function = getattr(fastconv, name)
    assert inspect.getdoc(function)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    found = doctest.DocTestFinder(recurse=False).find(function, name)
    report: list[str] = []
    for example in found:
        runner.run(example, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_main_functions_have_examples():
    finder = doctest.DocTestFinder(recurse=False)
    for name in ("conv2d", "prepare_conv2d", "plan_conv2d", "dense"):
        assert any(test.examples for test in finder.find(getattr(fastconv, name), name)), name


def test_version_is_that_of_the_installed_package():
    try:
        installed = importlib.metadata.version("fastconv")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fastconv runs from its source folder here")
    assert fastconv.__version__ == installed


def test_version_looks_like_one():
    parts = fastconv.__version__.split(".")
    assert len(parts) >= 3
    assert all(part.isdigit() for part in parts[:2])


def test_module_and_function_share_the_name_conv2d():
    """Importing the module by its dotted name must not put the module in the function's place."""
    output = run_python(
        "-c",
        "import fastconv.conv2d\n"
        "import numpy as np\n"
        "y = fastconv.conv2d(np.ones((1, 3, 3, 1)), np.ones((2, 2, 1, 1)), algorithm='naive')\n"
        "from fastconv.conv2d import conv2d\n"
        "assert conv2d is fastconv.conv2d and callable(conv2d)\n"
        "import importlib, sys\n"
        "importlib.import_module('fastconv.conv2d')\n"
        "assert callable(fastconv.conv2d)\n"
        "print(y.ravel().tolist())\n",
    )
    assert output.strip() == "[4.0, 4.0, 4.0, 4.0]"


def test_algorithms_hold_the_policies_and_the_three_basic_ones():
    names = fastconv.conv2d_algorithms()
    assert isinstance(names, tuple)
    assert len(set(names)) == len(names)
    assert {"auto", "exact", "naive", "im2col", "direct"} <= set(names)
