"""The bench of signals: its cases, contenders, table and files; on few small signals."""

import json

import numpy as np
import pytest

pytest.importorskip("rich")
pytest.importorskip("scipy")

from bench import output
from bench import signal as bench
from bench.timing import Timing

SMALL = [
    bench.SignalCase("Convolve, 1-D", (30,), (5,), "same"),
    bench.SignalCase("Convolve2D", (8, 8), (3, 3), "full", "symm"),
    bench.SignalCase("larger", (16, 16), (9, 9), "full"),
]


def result(case, wrong=(), **seconds):
    return bench.Result(case, {name: Timing((value,)) for name, value in seconds.items()}, wrong)


def test_the_sizes_are_those_of_scipy_and_quick_ones_a_part_of_them():
    cases = list(bench.cases(quick=False))
    assert len(cases) == len(set(cases)) > 400
    assert set(bench.cases(quick=True)) <= set(cases)
    assert {case.group for case in cases} == set(bench.GROUPS)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_contenders_agree(case):
    for dtype in ("float32", "float64"):
        measured = bench.measure(case, dtype, seconds=1e-9, rounds=1)
        assert not measured.wrong
        assert "fastconv" in measured.timings
        assert len(measured.timings) > 1


def test_a_wrong_result_is_named(monkeypatch):
    monkeypatch.setattr(bench.fastconv, "convolve", lambda in1, in2, mode: np.zeros(in1.shape))
    measured = bench.measure(SMALL[0], "float64", seconds=1e-9, rounds=1)
    assert "convolve direct" in measured.wrong
    assert any("WRONG: 30 by 5, same: convolve" in line for line in bench.notes([measured]))


def test_rows_sum_up_and_name_the_smallest_ratio():
    one, other = (bench.SignalCase("Convolve, 1-D", (n,), (5,), "same") for n in (30, 50))
    results = [result(one, fastconv=1.0, convolve=8.0, oaconvolve=9.0), result(other, fastconv=2.0, convolve=4.0)]
    columns, rows = bench.table(results)
    assert len(rows) == 1
    cells = dict(zip(columns, rows[0], strict=True))
    assert (cells["ratio of sums"], cells["geometric mean"], cells["smallest"]) == ("4.0", "4.0", "2.0")
    assert (cells["of"], cells["below 3"]) == ("50 by 5", "1")
    assert any(line.startswith("Below 3: 2.00  Convolve, 1-D, 50 by 5, same") for line in bench.notes(results))
    assert list(output.markdown(columns, rows))


def test_command_prints_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "cases", lambda quick: SMALL)
    monkeypatch.setattr(bench, "_QUICK_SECONDS", 1e-9)
    path = tmp_path / "signal.json"
    assert bench.main(["--quick", "--markdown", "--group", "larger", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "| larger | full | fill | 1 |" in out
    content = json.loads(path.read_text())
    assert [entry["group"] for entry in content["results"]] == ["larger"]
    assert content["results"][0]["timings"]["fastconv"]["median"] > 0
