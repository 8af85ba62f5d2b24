"""The table of cases against other libraries; ``make soak`` draws problems."""

import pytest

from .cases import CASES
from .extent import cross_section
from .oracles import ORACLES
from .process import run_python


@pytest.mark.skipif(not ORACLES, reason="neither torch, scipy nor onnx is installed")
def test_other_libraries_agree():
    """In processes of its own: the libraries' threads do not survive the forks of other tests."""
    problems = str(len(cross_section(CASES, 5)))
    arguments = ["--table", "--seed", "7", "--problems", problems, "--seconds", "200"]
    output = run_python("-m", "tests.soak", "oracles", *arguments)
    assert f" {problems} problems" in output, output
