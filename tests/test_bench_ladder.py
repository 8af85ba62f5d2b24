"""The bench of the ladder: its command, tables, files, and what it models; on tiny images, and untimed."""

import json

import numpy as np
import pytest

from bench.ladder import __main__ as ladder_command
from bench.ladder import figure, measure, report
from bench.timing import Effort
from fastconv import ladder
from fastconv.machine import Machine
from fastconv.problem import DIRECTIONS

MACHINE = Machine("test", 1, "float32", 100e9, 10e9, 32, 40e9, 0.9)
ONCE = Effort(seconds=1e-9, calls=1, most_calls=1, slow_calls=1, turns=1)


def measured(*sizes):
    heard = []
    options = measure.Options(units=5, delta=1, channels=3)
    rows = measure.measure(list(sizes), options, MACHINE, ONCE, heard.append)
    assert len(heard) == len(rows)
    return rows


def test_small_images_are_measured_in_all_directions():
    rows = measured((6, 5))
    assert [row.step for row in rows] == list(ladder.steps((6, 5), units=5, delta=1, channels=3))
    for row in rows:
        assert row.why_modelled is None
        assert list(row.times) == list(DIRECTIONS)
        assert all(time.seconds > 0 and not time.modelled for time in row.times.values())


def test_what_does_not_fit_is_modelled_from_bytes_and_bandwidth(monkeypatch):
    monkeypatch.setattr(measure.memory, "available_bytes", lambda: 10**9)
    rows = {row.step.name: row for row in measured((1000, 1000))}
    dense = rows["dense"]
    assert all(time.modelled for time in dense.times.values())
    assert dense.times["forward"].seconds == dense.bytes / MACHINE.bandwidth == pytest.approx(400, rel=1e-5)
    assert "4.00 TB" in dense.why_modelled
    columns, cells = report.table(list(rows.values()))
    assert all(len(line) == len(columns) for line in cells)
    assert any("400 s modelled" in line for line in cells)
    assert any("1,000,000,000,000" in line for line in cells)


def test_what_takes_too_long_is_modelled(monkeypatch):
    monkeypatch.setattr(measure, "_LONGEST_CALL", 0.0)
    rows = measured((4, 4))
    assert all("at best" in row.why_modelled for row in rows)
    assert any("modelled, because a call takes" in line for line in report.notes(rows))


def test_both_pictures_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_LONGEST_CALL", 0.0)
    rows = measured((4, 4), (1000, 1000))
    paths = figure.write(rows, MACHINE, tmp_path / "ladder.png")
    assert [path.name for path in paths] == ["ladder.png", "ladder.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)


@pytest.fixture
def command(monkeypatch):
    def run(*arguments):
        conditions = type(
            "Conditions",
            (),
            {
                "machine": MACHINE,
                "headline": lambda self: "test machine",
                "warnings": lambda self, plans: iter(()),
                "facts": lambda self: {"cpus": 1},
            },
        )()
        monkeypatch.setattr(ladder_command.environment, "prepare", lambda threads: conditions)
        monkeypatch.setattr(ladder_command.timing, "QUICK", ONCE)
        return ladder_command.main(["--quick", "--size", "5x4", *arguments])

    return run


def test_command_prints_writes_and_draws(command, capsys, tmp_path):
    stem = tmp_path / "deep" / "ladder"
    assert command("--json", f"{stem}.json", "--figure", str(stem), "--units", "7") == 0
    out = capsys.readouterr().out
    for words in ("5 x 4 pixels", "dense, 7 units", "H[i,j] = sum_kl W[i,j,k,l] X[k,l]", "dense 400 weights"):
        assert words in out
    content = json.loads(stem.with_suffix(".json").read_text())
    assert content["options"] == {"units": 7, "delta": 2, "channels": 16}
    assert [row["step"]["parameters"] for row in content["rows"]] == list(ladder.parameters((5, 4), units=7).values())
    assert stem.with_suffix(".svg").exists()


def test_command_prints_markdown(command, capsys):
    assert command("--markdown", "--size", "3x3") == 0
    out = capsys.readouterr().out
    assert "| dense, image to image | 400 |" in out
    assert "3 x 3 pixels" in out


@pytest.mark.parametrize(
    "arguments", [("--size", "5"), ("--size", "0x4"), ("--delta", "-1"), ("--units", "0")], ids=str
)
def test_command_rejects(command, arguments):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2


def test_numbers_repeat_and_have_the_shape():
    numbers = measure._numbers(3, 5)
    assert numbers.shape == (3, 5)
    assert numbers.dtype == np.float32
