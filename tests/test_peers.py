"""The comparison with other libraries: its table of cases, who may be timed, what the figures come to; untimed."""

import dataclasses
import json

import numpy as np
import pytest

from bench import cases, environment, libraries
from bench.contenders import Contender, Fastconv, Prepared, Task, plan
from bench.held_out import HELD_OUT
from bench.peers import __main__ as peers_command
from bench.peers import figure, measure, report, summary
from bench.shapes import KINDS, conv, depthwise
from bench.timing import Effort, Timing
from fastconv import machine
from fastconv.machine import Machine

from .process import run_python

MACHINE = Machine("test", 1, "float32", 100e9, 10e9, 32, 40e9, 0.9)
TINY = (conv("tiny-3x3", 1, 8, 1, 3, padding=1), depthwise("tiny-depthwise", 3, 7, 3))


class Copycat(Contender):
    """A library that answers with what fastconv computes, times a factor."""

    def __init__(self, name, factor=1.0):
        self.name, self.factor = name, factor

    def supports(self, case, direction, dtype="float32"):
        return "no depthwise" if case.groups > 1 else None

    def prepare(self, task):
        prepared = Fastconv("auto").prepare(task)
        return Prepared(prepared.run, lambda result: prepared.as_numpy(result) * np.float32(self.factor))


class Crash(Copycat):
    """A library that fails."""

    def prepare(self, task):
        raise OSError("no kernel")


def compared(case=TINY[0], ours=1.0, peers=(), predicted=1.0, **changes):
    """A made-up comparison, from medians in seconds."""
    ours = {"auto": ours} if isinstance(ours, float) else ours
    made = measure.Comparison(
        case=case,
        plan=plan(case, "forward"),
        ours={name: Timing((seconds,)) for name, seconds in ours.items()},
        peers={f"peer {number}": Timing((seconds,)) for number, seconds in enumerate(peers)},
        predicted=dict.fromkeys(ours, predicted),
        declined={},
        wrong={},
        limits=MACHINE,
        drift=0.0,
        attempts=1,
    )
    return dataclasses.replace(made, **changes)


def test_names_are_unique():
    names = [case.name for case in (*cases.CASES, *HELD_OUT)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("kind", KINDS)
def test_each_class_has_cases(kind):
    assert sum(case.kind == kind for case in cases.CASES) >= 4


def test_held_out_layers_are_other_problems():
    tuned = {dataclasses.replace(case, name="", network="") for case in cases.CASES}
    assert not [case.name for case in HELD_OUT if dataclasses.replace(case, name="", network="") in tuned]


@pytest.mark.parametrize("case", [*cases.CASES, *HELD_OUT], ids=lambda case: case.name)
def test_cases_are_problems_that_fastconv_takes(case):
    planned = plan(case, "forward")
    assert planned.problem.y_shape == case.y_shape
    assert planned.flops == case.flops
    assert plan(case, "forward", layout="NCHW").flops == case.flops


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (conv("a", 64, 56, 64, 3, padding=1), "3x3 stride 1"),
        (conv("a", 64, 56, 64, 1), "1x1"),
        (conv("a", 64, 56, 64, 1, stride=2), "strided"),
        (conv("a", 3, 224, 64, 7, stride=2), "few channels"),
        (depthwise("a", 64, 56, 3, stride=2), "depthwise"),
        (depthwise("a", 64, 56, 3, multiplier=2), "depthwise"),
        (depthwise("a", 64, 56, 31), "large kernel"),
        (depthwise("a", 64, 56, 3, dilation=2), "dilated"),
        (conv("a", 64, 56, 64, 3, groups=2), "grouped"),
        (conv("a", 64, 56, 64, 5), "5x5 to 11x11"),
        (conv("a", 64, 56, 64, (1, 5)), "1xk and kx1"),
        (conv("a", 64, 1, 64, 1), "small problem"),
        (conv("a", 3, 224, 768, 16, stride=16), "few channels"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_class_follows_from_geometry(case, kind):
    assert case.kind == kind


def test_task_in_channels_first_order():
    task = Task.make(conv("a", 2, 5, 4, (3, 2)), "grad_weight", dtype="float64")
    first, second = task.channels_first()
    assert (first.shape, second.shape) == ((1, 4, 3, 4), (1, 2, 5, 5))
    assert task.zeros_channels_first().shape == (4, 2, 3, 2)
    assert task.channels_last(task.zeros_channels_first()).shape == task.result_shape
    assert {a.dtype.name for a in (first, second, task.zeros())} == {"float64"}


@pytest.mark.parametrize("peer", libraries.PEERS, ids=lambda peer: peer.name)
def test_installed_peer_agrees(peer):
    """In a process of its own: the libraries' threads do not survive the forks of other tests."""
    if not peer.is_installed():
        pytest.skip(f"{peer.name} is not installed")
    found = json.loads(run_python("-m", "tests.peer_check", peer.name, NUMBA_NUM_THREADS="2"))
    assert not found["wrong"]
    assert found["right"]


def test_who_is_qualified():
    contenders = [Fastconv("auto"), Copycat("same"), Copycat("different", 1.01), Crash("crashes")]
    calls, declined, wrong = measure.qualified(Task.make(TINY[0], "forward"), contenders)
    assert list(calls) == ["auto", "same"]
    assert not declined
    assert "WrongResultError" in wrong["different"]
    assert wrong["crashes"] == "OSError: no kernel"
    _, declined, _ = measure.qualified(Task.make(TINY[1], "forward"), contenders)
    assert declined == dict.fromkeys(("same", "different", "crashes"), "no depthwise")


def test_our_own_failure_is_raised():
    with pytest.raises(OSError, match="no kernel"):
        measure.qualified(Task.make(TINY[0], "forward"), [Crash("first"), Copycat("second")])


@pytest.mark.parametrize(("peaks", "attempts", "drift"), [((1, 1), 1, 0), ((1, 2, 2.1), 2, 0.05), ((1, 2, 1, 2), 3, 1)])
def test_case_is_repeated_until_the_machine_is_steady(monkeypatch, peaks, attempts, drift):
    runs = iter(dataclasses.replace(MACHINE, peak_flops=peak) for peak in peaks)
    monkeypatch.setattr(machine, "calibrate", lambda threads, dtype: next(runs))
    effort = Effort(seconds=0, calls=1, most_calls=1, slow_calls=1, turns=1)
    instrument = measure.Instrument(Fastconv("auto"), [Fastconv("im2col")], [Copycat("same")], MACHINE, effort)
    result = instrument.measure(TINY[0], "forward")
    assert result.attempts == attempts
    assert result.drift == pytest.approx(drift)
    assert result.steady == (drift <= measure.STEADY)
    assert set(result.ours) == {"auto", "im2col"} - ({"im2col"} if result.plan.algorithm == "im2col" else set())
    assert set(result.peers) == {"same"}


def test_ratio_is_that_of_the_fastest_peer():
    result = compared(ours=2.0, peers=(5.0, 3.0, 4.0))
    assert (result.fastest_peer, result.ratio) == ("peer 1", 1.5)
    assert compared(peers=()).ratio is None


def test_summary_by_class():
    deep = TINY[1]
    measured = [compared(peers=(4.0,)), compared(peers=(1.0,)), compared(deep, peers=(0.5,)), compared(deep)]
    by_name = {ratios.kind: ratios for ratios in summary.by_kind(measured)}
    small, depth, everything = (by_name[kind] for kind in (TINY[0].kind, "depthwise", summary.ALL))
    assert (small.cases, small.smallest, small.geometric_mean, small.below_one) == (2, 1.0, pytest.approx(2.0), 0)
    assert (depth.cases, depth.worst, depth.below_one) == (1, deep.name, 1)
    assert (everything.cases, everything.geometric_mean) == (3, pytest.approx(2 ** (1 / 3)))
    assert [c.case for c in summary.behind(measured)] == [deep]


def test_quality_of_choices_and_predictions():
    measured = [
        compared(ours={"auto": 1.04, "other": 1.0}),
        compared(ours={"auto": 1.06, "other": 1.0}, predicted=1.3),
        compared(ours=1.0, predicted=0.8),
    ]
    assert summary.quality(measured) == summary.Quality(chosen=2, chosen_well=1, predicted=5, predicted_well=4)


def test_figure_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    measured = [compared(peers=(2.0,)), compared(TINY[1], peers=(0.5,)), compared(TINY[1])]
    paths = figure.write(measured, MACHINE, "a test", tmp_path / "new" / "peers.png")
    assert [path.name for path in paths] == ["peers.png", "peers.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_figure_without_peers(tmp_path):
    pytest.importorskip("matplotlib")
    assert figure.write([compared()], MACHINE, "a test", tmp_path / "alone")


@pytest.fixture
def command(monkeypatch):
    """The command on two tiny cases, with made-up libraries and a machine that is not calibrated."""
    pytest.importorskip("rich")
    pytest.importorskip("threadpoolctl")
    monkeypatch.setattr(cases, "CASES", TINY)
    monkeypatch.setattr(machine, "calibrate", lambda threads=None, dtype="float32": MACHINE)
    monkeypatch.setattr(environment, "prepare", lambda threads, dtype: environment.Environment(MACHINE, True))
    monkeypatch.setattr(libraries, "missing", lambda: ["Absent"])

    def run(*arguments, peers=("same",)):
        factors = {"same": 1.0, "different": 2.0}
        found = [Copycat(name, factors[name]) for name in peers]
        monkeypatch.setattr(libraries, "installed", lambda threads, packed: found)
        return peers_command.main([*arguments, "--quick"])

    return run


def test_command_writes_what_it_measured(command, tmp_path, capsys):
    path = tmp_path / "peers.json"
    assert command("--direction", "all", "--algorithms", "--markdown", "--json", str(path)) == 0
    content = json.loads(path.read_text())
    assert set(content) == {"environment", "setting", "warnings", "summary", "comparisons"}
    assert len(content["comparisons"]) == 6
    for entry in content["comparisons"]:
        assert (entry["ratio"] is None) == (entry["case"]["groups"] > 1)
        assert entry["ours"].keys() == entry["predicted_seconds"].keys()
        assert {"median", "quartiles", "calls"} == entry["ours"]["auto"].keys()
    assert content["summary"]["quality"]["chosen"] > 0
    out = capsys.readouterr().out
    assert "| tiny-3x3 | grad_weight | same |" in out
    assert "Not installed: Absent" in out


def test_command_reports_wrong_results(command, capsys):
    assert command(peers=("same", "different")) == 1
    assert "NOT TIMED: different, tiny-3x3 forward" in capsys.readouterr().out


def test_command_without_peers(command, capsys):
    assert command("--layout", "NCHW", "--dtype", "float32", "--prepared", peers=()) == 0
    assert "No peer was timed" in capsys.readouterr().out


def test_command_lists_cases(command, capsys):
    assert command("--list", "--kind", "depthwise") == 0
    out = capsys.readouterr().out
    assert "tiny-depthwise" in out
    assert "tiny-3x3" not in out


@pytest.mark.parametrize(
    "arguments",
    [("--cases", "nothing"), ("--cases", "("), ("--prepared", "--direction", "all"), ("--threads", "0")],
    ids=" ".join,
)
def test_command_rejects(command, arguments):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2


def test_quick_takes_one_case_of_each_class():
    options = peers_command._parser().parse_args(["--quick"])
    assert [case.kind for case in peers_command._chosen(options)] == list(KINDS)
    options = peers_command._parser().parse_args(["--quick", "--cases", "mobilenetv2-dw"])
    assert len(peers_command._chosen(options)) > 1, "cases that are named are all taken"


def test_cases_are_sorted_by_class():
    kinds = [KINDS.index(case.kind) for case in report.by_class(cases.CASES)]
    assert kinds == sorted(kinds)
