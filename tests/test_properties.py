"""What holds for every problem, on random ones: adjointness, linearity, gradients that are derivatives."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import fastconv

from .cases import LAYOUTS, NAMED, UNIVERSAL, Case
from .extent import ALL

properties = settings(derandomize=True, deadline=None, max_examples=300 if ALL else 80)
algorithms = st.sampled_from([name for name in NAMED if name in UNIVERSAL])
layouts = st.sampled_from(LAYOUTS)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def cases(draw) -> Case:
    def axes(low, high):
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, dilation = axes(1, 4), axes(1, 4), axes(1, 3)
    padding = axes(0, 3), axes(0, 3)
    image = []
    for size, spread, pads in zip(kernel, dilation, padding, strict=True):
        smallest = max(1, (size - 1) * spread + 1 - sum(pads))
        image.append(smallest + draw(st.integers(0, 9)))
    groups = draw(st.integers(1, 4))
    return Case(
        "random",
        ic=groups * draw(st.integers(1, 6)),
        oc=groups * draw(st.integers(1, 20)),
        image=tuple(image),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        n=draw(st.integers(1, 3)),
    )


def integers(rng, shape):
    return rng.integers(-4, 5, shape).astype(np.float64)


def inner(left, right):
    return np.vdot(left, right)


@properties
@given(cases(), algorithms, layouts, seeds)
def test_gradients_are_adjoint_to_the_forward_pass(case, algorithm, layout, seed):
    rng = np.random.default_rng(seed)
    x, w, grad_y = (integers(rng, shape) for shape in case.shapes(layout))
    keywords = {"algorithm": algorithm, "layout": layout, **case.arguments}
    y = fastconv.conv2d(x, w, **keywords)
    assert y.shape == grad_y.shape
    dx = fastconv.conv2d_grad_input(grad_y, w, x.shape, **keywords)
    dw = fastconv.conv2d_grad_weight(grad_y, x, case.kernel, **keywords)
    assert inner(y, grad_y) == inner(x, dx)
    assert inner(y, grad_y) == inner(w, dw)


@properties
@given(cases(), algorithms, layouts, seeds)
def test_forward_pass_is_linear_in_x_and_in_w(case, algorithm, layout, seed):
    rng = np.random.default_rng(seed)
    x_shape, w_shape, _ = case.shapes(layout)
    x, other_x = integers(rng, x_shape), integers(rng, x_shape)
    w, other_w = integers(rng, w_shape), integers(rng, w_shape)

    def conv(x, w):
        return fastconv.conv2d(x, w, algorithm=algorithm, layout=layout, **case.arguments)

    np.testing.assert_array_equal(conv(2 * x - 3 * other_x, w), 2 * conv(x, w) - 3 * conv(other_x, w))
    np.testing.assert_array_equal(conv(x, 2 * w - 3 * other_w), 2 * conv(x, w) - 3 * conv(x, other_w))


@properties
@given(cases(), algorithms, layouts, seeds)
def test_backward_pass_is_the_derivative(case, algorithm, layout, seed):
    """Central differences of half the sum of squares, exact for a quadratic but for rounding."""
    rng = np.random.default_rng(seed)
    x_shape, w_shape, _ = case.shapes(layout)
    x, along_x = rng.uniform(-1, 1, (2, *x_shape))
    w, along_w = rng.uniform(-1, 1, (2, *w_shape))
    bias, along_bias = rng.uniform(-1, 1, (2, case.oc))
    keywords = {"algorithm": algorithm, "layout": layout, **case.arguments}

    def loss(x, w, bias):
        return 0.5 * np.sum(fastconv.conv2d(x, w, bias, **keywords) ** 2)

    y = fastconv.conv2d(x, w, bias, **keywords)
    dx, dw, db = fastconv.conv2d_backward(y, x, w, **keywords)
    step = 0.125
    slopes = {
        "x": (loss(x + step * along_x, w, bias), loss(x - step * along_x, w, bias), inner(dx, along_x)),
        "w": (loss(x, w + step * along_w, bias), loss(x, w - step * along_w, bias), inner(dw, along_w)),
        "bias": (
            loss(x, w, bias + step * along_bias),
            loss(x, w, bias - step * along_bias),
            inner(db, along_bias),
        ),
    }
    for name, (above, below, slope) in slopes.items():
        scale = (above + below) / step
        assert abs((above - below) / (2 * step) - slope) <= 1e-12 * scale, name


@properties
@given(cases(), algorithms, layouts, seeds)
def test_images_of_a_batch_are_independent(case, algorithm, layout, seed):
    rng = np.random.default_rng(seed)
    x_shape, w_shape, _ = case.shapes(layout)
    x, w = integers(rng, x_shape), integers(rng, w_shape)
    keywords = {"algorithm": algorithm, "layout": layout, **case.arguments}
    together = fastconv.conv2d(x, w, **keywords)
    for image, expected in zip(x, together, strict=True):
        np.testing.assert_array_equal(fastconv.conv2d(image, w, **keywords), expected)
