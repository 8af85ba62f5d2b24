"""The bench of training steps: both libraries compute the same, its command, tables and files; small and untimed."""

import json

import numpy as np
import pytest

from bench.contenders import WrongResultError
from bench.timing import Effort, Timing
from bench.training import __main__ as training_command
from bench.training import measure, networks, ours, report, theirs
from fastconv.machine import Machine

MACHINE = Machine("test", 1, "float32", 100e9, 10e9, 32, 40e9, 0.9)
ONCE = Effort(seconds=1e-9, calls=1, most_calls=1, slow_calls=1, turns=1)
SMALL = {"lenet5": lambda: networks.lenet5(3), "resnet18": lambda: networks.resnet18(2, width=4, image=16)}


@pytest.fixture(params=SMALL)
def network(request):
    return SMALL[request.param]()


def without_torch(monkeypatch):
    monkeypatch.setattr(measure.importlib.util, "find_spec", lambda name: None)


def test_networks_are_those_of_the_papers():
    lenet5, resnet18 = (networks.Data.make(make()) for make in networks.NETWORKS.values())
    assert sum(value.size for pair in lenet5.weights for value in pair) == 61_706
    assert lenet5.x.shape == (64, 32, 32, 1)
    assert len(resnet18.weights) == 16
    assert sum(w.size for w, _ in resnet18.weights) == 9 * (4 * 64**2 + 3.5 * 128**2 + 3.5 * 256**2 + 3.5 * 512**2)


def test_steps_lower_the_loss(network):
    step = ours.Step(network, networks.Data.make(network))
    losses = [step() for _ in range(40)]
    assert losses[-1] < losses[0]


def test_gradients_are_numeric_ones(network):
    data = networks.Data.make(network)
    wide = networks.Data(
        data.x.astype(float), data.labels, tuple((w.astype(float), b.astype(float)) for w, b in data.weights)
    )
    step, rng = ours.Step(network, wide), np.random.default_rng(2)
    step.backward(step.forward())
    for pair, gradients in zip(step.weights, list(step.gradients), strict=True):
        for value, gradient in zip(pair, gradients, strict=True):
            direction, ends = rng.standard_normal(value.shape), []
            for change in (1e-6, -2e-6):
                value += change * direction
                ends.append(step.loss(step.forward()[-1])[0])
            value += 1e-6 * direction
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx((gradient * direction).sum(), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("name", theirs.LAYOUTS)
def test_torch_computes_the_same(network, name):
    pytest.importorskip("torch")
    data = networks.Data.make(network)
    measure.require_same([ours.Step(network, data), theirs.Step(network, data, name, 1)])


def test_another_result_is_noticed(network):
    data = networks.Data.make(network)
    other = networks.Data(data.x * np.float32(1.1), data.labels, data.weights)
    with pytest.raises(WrongResultError, match="the losses of two steps"):
        measure.require_same([ours.Step(network, data), ours.Step(network, other)])
    slower, step = ours.Step(network, data), ours.Step(network, data)
    slower.update = lambda: None
    with pytest.raises(WrongResultError):
        measure.require_same([step, slower])


def test_parts_are_the_same_for_all(network, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(measure, "QUICK", ONCE)
    monkeypatch.setattr(measure, "QUICK_PARTS", ONCE)
    told = []
    training = measure.measure(network, 1, told.append, quick=True, parts=True)
    assert set(training.steps) == {"fastconv", *theirs.LAYOUTS}
    assert len(told) == len({layer.name for layer in network.layers}) + 3
    assert all(part.timings.keys() == training.steps.keys() for part in training.parts)
    forward = [part for part in training.parts if part.part == "forward"]
    assert sum(part.count for part in forward) == len(network.layers)
    kinds = {part.part for part in training.parts}
    assert kinds == {"forward", "grad_input", "grad_weight", "grad_relu", "loss", "update"}
    columns, rows = report.parts(training)
    assert all(len(row) == len(columns) for row in rows)
    assert rows[-1][0] == "sum"


def test_ratio_is_that_of_the_faster_layout():
    timings = {name: Timing((seconds,)) for name, seconds in (("fastconv", 2.0), ("slow", 9.0), ("faster", 5.0))}
    training = measure.Training(networks.lenet5(), timings, ())
    assert (training.rival, training.ratio) == ("faster", 2.5)
    alone = measure.Training(networks.lenet5(), {"fastconv": Timing((2.0,))}, ())
    assert alone.ratio is None


@pytest.fixture
def command(monkeypatch):
    pytest.importorskip("rich")
    conditions = training_command.environment.Environment(MACHINE, True)
    monkeypatch.setattr(training_command.environment, "prepare", lambda threads: conditions)
    monkeypatch.setattr(training_command.environment.Environment, "warnings", lambda self, plans: iter(()))
    monkeypatch.setattr(training_command, "NETWORKS", SMALL)
    monkeypatch.setattr(measure, "QUICK", ONCE)
    monkeypatch.setattr(measure, "QUICK_PARTS", ONCE)
    return lambda *arguments: training_command.main(["--quick", *arguments])


def test_command_prints_and_writes(command, tmp_path, capsys):
    pytest.importorskip("torch")
    path = tmp_path / "new" / "training.json"
    assert command("--parts", "--markdown", "--json", str(path)) == 0
    out = capsys.readouterr().out
    assert "| LeNet-5, batch 3 | fastconv |" in out
    assert "| resnet18-conv4 | forward | 3 |" in out
    assert "Geometric mean" in out
    content = json.loads(path.read_text())
    assert [training["network"] for training in content["trainings"]] == list(SMALL)
    for training in content["trainings"]:
        assert training["ratio"] > 0
        assert training["parts"][0]["timings"].keys() == training["steps"].keys()


def test_command_without_torch(command, monkeypatch, capsys):
    without_torch(monkeypatch)
    assert command("--network", "lenet5") == 0
    out = capsys.readouterr().out
    assert "PyTorch is not installed" in out
    assert "ResNet" not in out


def test_command_reports_wrong_results(command, monkeypatch, capsys):
    def refuse(steps):
        raise WrongResultError("something: differs")

    monkeypatch.setattr(measure, "require_same", refuse)
    assert command() == 1
    assert "NOT TIMED: something: differs" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("--network", "vgg"), ("--threads", "0")], ids=" ".join)
def test_command_rejects(command, arguments):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
