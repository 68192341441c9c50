"""The tool that tries deliberate faults, on a package of one function."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TRY = """
import os
import sys
from pathlib import Path
import mutants_run
from mutant_fault import Fault

def fault(name, text, instead, **more):
    return Fault(name, "sums.py", text, instead, ("test_sums.py",), **{"select": "two"} | more)

faults = [
    fault("sign", "a + b", "a - b"),
    fault("order", "a + b", "b + a", equivalent="sums commute"),
    fault("end", "return", "import os; os.abort(); return"),
    fault("time", "return", "import time; time.sleep(60); return"),
    fault("hole", "b=0", "b=1"),
    fault("gone", "a * b", "a"),
    fault("many", "a", "b"),
    fault("red", "a + b", "a - b", select="red"),
    fault("no tests", "a + b", "a - b", select="nothing"),
]
heavy = ["pytest", *os.environ["PYTEST_PLUGINS"].split(",")]
sys.exit(mutants_run.main(sys.argv[1:], faults, Path("tree").resolve(), heavy=heavy))
"""
PLUGINS = {  # of those that are installed only what the options of the runs need
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "xdist.plugin,pytest_timeout,pytest_benchmark.plugin",
}
SUMS = "def add(a, b=0):\n    return a + b\n"
TESTS = """
import sums

def test_two():
    assert sums.add(2, 3) == 5

def test_red():
    assert False
"""
SAID = """
found     sign: found by test_sums.py::test_two
SURVIVED  order: sums commute
found     end: found by its end with -6
SURVIVED  hole: by every test of it <--
STALE     gone: sums.py has the text 0 times, expected once <--
STALE     many: sums.py has the text 3 times, expected once <--
RED WITHOUT THE FAULT red: test_sums.py::test_red <--
STALE     no tests: pytest ended with 5: no such tests? <--
8 faults, 1 of them equivalent: 2 found, 2 SURVIVED, 3 STALE, 1 RED WITHOUT THE FAULT
"""


@pytest.fixture
def tried(tmp_path):
    """What the tool says and its exit code, for the options that are given."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "sums.py").write_text(SUMS)
    (tmp_path / "tree" / "test_sums.py").write_text(TESTS)

    def run(*options: str) -> tuple[int, list[str]]:
        environment = {**os.environ, **PLUGINS, "PYTHONPATH": str(HERE)}
        command = [sys.executable, "-c", TRY, *options]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines()

    return run


def test_every_outcome_is_told(tried, tmp_path):
    out = tmp_path / "out.jsonl"
    code, lines = tried("--only", "[!t]*", "--jobs", "2", "--out", str(out))
    assert code == 1
    assert len(lines) == 8 + 5 + 1  # as they end, then those that should not be, then a summary
    for said in SAID.strip().splitlines():
        assert any(said in line for line in lines), (said, lines)
    assert (tmp_path / "tree" / "sums.py").read_text() == SUMS
    code, again = tried("--only", "[so]*[nr]", "--out", str(out), "--resume")
    summary = "2 faults, 1 of them equivalent: 1 found, 1 SURVIVED; "
    assert (code, len(again), again[0].startswith(summary)) == (0, 1, True), again


def test_a_run_that_never_ends_has_found_its_fault(tried):
    code, lines = tried("--only", "time", "--limit", "1")
    assert code == 0, lines
    assert "found     time: found by the limit of 1 s" in lines[0]


def test_the_list(tried):
    code, lines = tried("--list")
    assert code == 0
    assert lines[:2] == ["sign  [sums.py]", "order  [sums.py] equivalent"]
