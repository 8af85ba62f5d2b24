"""The continuous convolution from samples: closed forms, the order of the error, the figure."""

import math

import numpy as np
import pytest

pytest.importorskip("rich")

import continuous_convolution as example


def test_gaussians_give_the_gaussian_of_the_summed_variances():
    x, result = example.gaussians(0.6, 0.8).sampled(200)
    assert x[0] == -18
    assert math.isclose(x[-1], 18)
    np.testing.assert_allclose(result, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), rtol=0, atol=1e-14)


@pytest.mark.parametrize("pair", example.PAIRS, ids=lambda pair: pair.name)
def test_errors_are_as_predicted(pair):
    rounding = 1e-14
    for count in example.COUNTS:
        predicted = pair.predicted(pair.step(count))
        assert pair.error(count) < 1.3 * predicted + rounding
        if predicted < 0.05:  # the prediction is of small steps
            assert pair.error(count) > 0.4 * predicted - rounding


def test_each_halving_of_the_step_gains_what_the_order_says():
    for offset, order in ((0.0, 1), (0.5, 2)):
        errors = [example.decays(offset).error(count) for count in (256, 512, 1024)]
        np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), order, atol=0.03)


def test_the_table_and_the_figure(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.png"
    assert example.main(["--figure", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "Gaussians" in out
    assert str(max(example.COUNTS)) in out
