"""The Fashion-MNIST example on a few made-up pictures: it learns, goes on to the same bits, and draws."""

import re

import numpy as np
import pytest

from fastconv import datasets, nn

from .checks import assert_same_bits
from .process import ROOT, run_python

pytest.importorskip("matplotlib")
pytest.importorskip("rich")

from fashion import compare, figures, invariance, networks
from fashion.train import Adam, Settings, State, as_input, augmented, one_cycle, shifted, split, train


def pictures(n, rng):
    """Gray noise with a bright spot whose place depends on the class."""
    labels = np.arange(n) % 10
    images = rng.integers(0, 40, (n, 28, 28))
    for image, label in zip(images, labels, strict=True):
        row, column = 4 + 9 * (label // 4), 2 + 7 * (label % 4)
        image[row : row + 4, column : column + 4] += 200
    return images.astype(np.uint8), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return datasets.FashionMNIST(*pictures(160, rng), *pictures(40, rng), datasets.FASHION_MNIST_CLASSES)


def trained(name, data, epochs=2, until=None, **changed):
    state = State.fresh(Settings(name, epochs=epochs, batch=20, **changed))
    train(state, data, until or epochs, lambda *_: None)
    return state


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_loss_falls(data, name):
    told = []
    state = State.fresh(Settings(name, epochs=4, batch=20))
    train(state, data, 4, lambda *call: told.append(call))
    assert [call[:2] for call in told] == [(epoch, step) for epoch in range(4) for step in range(1, 9)]
    first, last = state.history[0], state.history[-1]
    assert last["train_loss"] < 0.5 * first["train_loss"]
    assert last["test_accuracy"] > 0.5


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_gradients_are_numeric_ones(name):
    rng = np.random.default_rng(1)
    network = networks.NETWORKS[name](rng)
    for layer in network.layers:
        for key, value in layer.parameters.items():
            layer.parameters[key] = value.astype(float) + 0.01 * rng.standard_normal(value.shape)
    x, labels = rng.standard_normal((3, 28, 28, 1)), np.array([1, 5, 9])
    network.loss(x, labels)
    gradients = {name: value.copy() for name, value in network.gradients.items()}
    assert gradients.keys() == network.parameters.keys()
    for key, value in network.parameters.items():
        direction = rng.standard_normal(value.shape)
        ends = []
        for step in (1e-7, -2e-7):
            value += step * direction
            ends.append(nn.softmax_cross_entropy(network.logits(x), labels)[0])
        value += 1e-7 * direction
        assert (ends[0] - ends[1]) / 2e-7 == pytest.approx((gradients[key] * direction).sum(), rel=1e-3, abs=1e-6), key


def test_cnn_is_small():
    count = networks.parameter_count(networks.cnn(np.random.default_rng(0)))
    assert count == 89_098
    assert f"{count:,}" in networks.cnn.__doc__
    assert networks.parameter_count(networks.lenet5(np.random.default_rng(0))) == 61_706


def test_training_goes_on_to_the_same_bits(data, tmp_path):
    how = {"shift": 1, "flip": True, "rate": 1e-3, "dropout": 0.3, "smoothing": 0.1, "decay": 0.01}
    whole = trained("cnn", data, **how)
    path = tmp_path / "new" / "cnn.npz"
    trained("cnn", data, until=1, **how).save(path)
    assert [file.name for file in path.parent.iterdir()] == ["cnn.npz"]
    resumed = State.load(path)
    assert len(resumed.history) == 1
    train(resumed, data, 2, lambda *_: None)
    for name, value in whole.network.parameters.items():
        assert_same_bits(resumed.network.parameters[name], value)
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_another_seed_is_another_network():
    one, other = (State.fresh(Settings("mlp", epochs=1, seed=seed)).network.parameters["1.w"] for seed in (0, 1))
    assert (one != other).any()


def test_adam_equals_its_formula():
    w = np.array([1.0, -2.0])
    adam = Adam({"w": w})
    m, v, expected = np.zeros(2), np.zeros(2), w.copy()
    for t, grad in enumerate((np.array([0.5, -1.0]), np.array([-3.0, 2.0])), 1):
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        expected -= 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        adam.step({"w": grad}, 0.01)
    np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_dropout_forgets_a_share_in_training_alone():
    layer = networks.Dropout()
    layer.share, layer.rng = 0.25, np.random.default_rng(0)
    x = np.ones((50, 400), np.float32)
    assert layer.forward(x) is x
    assert layer.backward(x) is x
    layer.training = True
    y = layer.forward(x)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert y.mean() == pytest.approx(1, abs=0.02)
    assert_same_bits(layer.backward(np.ones_like(x)), y)


def test_holdout_takes_the_last_training_images(data):
    part = split(data, 30)
    assert (len(part.train_images), len(part.test_images)) == (130, 30)
    np.testing.assert_array_equal(part.test_labels, data.train_labels[-30:])
    assert split(data, 0) is data


def test_learning_rate_rises_and_falls():
    rates = [one_cycle(progress, 1.0) for progress in np.linspace(0, 1, 21)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[4] == pytest.approx(1)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert (np.diff(rates[4:]) < 0).all()


def test_shifted_pictures():
    image = np.zeros((2, 5, 5), np.uint8)
    image[:, 2, 2] = 9
    moved = shifted(image, np.array([1, -2]), np.array([2, 0]))
    assert [tuple(index) for index in np.argwhere(moved)] == [(0, 3, 4), (1, 0, 2)]
    np.testing.assert_array_equal(shifted(image, np.zeros(2, int), np.zeros(2, int)), image)


def test_augmentation_mirrors_about_half_and_shifts_by_at_most_so_many():
    images = np.zeros((400, 9, 9), np.uint8)
    images[:, 4, 2] = 1
    moved = augmented(images, Settings("cnn", epochs=1, shift=1, flip=True), np.random.default_rng(0))
    _, rows, columns = np.nonzero(moved)
    assert len(rows) == 400
    assert set(rows) == {3, 4, 5}
    assert set(columns) == {1, 2, 3, 5, 6, 7}
    assert 150 < (columns > 4).sum() < 250


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_figures_are_written(data, tmp_path, name):
    paths = figures.write_all(trained(name, data), data, tmp_path)
    expected = {"curves", "confusion", "kernels"} | ({"features"} if name != "mlp" else set())
    assert {path.name for path in paths} == {f"{name}-{what}.png" for what in expected}
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 5000


def test_invariance_is_measured_and_drawn(data, tmp_path):
    network = trained("mlp", data, epochs=4).network
    values = invariance.accuracies(network, data, range(0, 7, 3))
    assert len(values) == 3
    assert values[0] > values[-1]
    assert figures.save_invariance({"mlp": values}, tmp_path).stat().st_size > 5000


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_the_network_in_torch_is_the_same(data, name):
    pytest.importorskip("torch")
    state = State.fresh(Settings(name, epochs=1, batch=8, smoothing=0.1, dropout=0.2, decay=0.01))
    x = as_input(data.test_images[:4])
    logits = state.network.logits(x)
    taken = compare.measure(state, data, turns=1, threads=1)  # raises where the losses differ
    assert len(taken) == (2 if name == "mlp" else 3)
    assert compare.ratio(taken) > 0
    assert (state.network.logits(x) != logits).any()


def test_command_line(tmp_path):
    try:
        datasets.fashion_mnist(fetch=False)
    except FileNotFoundError:
        pytest.skip("Fashion-MNIST is not on this machine")
    script, common = str(ROOT / "examples" / "fashion_mnist.py"), ("--output", str(tmp_path), "--limit", "640")
    first = run_python(script, "train", "lenet5", "--epochs", "2", "--until", "1", *common, COLUMNS="200")
    assert "Epoch 1 of 2" in first
    second = run_python(script, "train", "lenet5", "--epochs", "2", *common, COLUMNS="200")
    assert re.search(r"Epoch 2 of 2: test accuracy 0\.\d{4}", second)
    assert "lenet5-features.png" in second
    table = run_python(script, "invariance", *common, COLUMNS="200")
    assert "4 px" in table
    assert (tmp_path / "invariance.png").exists()
