"""The stages of GPU tests: which come first, and a failure is told as it happens."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import context, failures, gpu_tests
from benchmarks.harness.stages import EVIDENCE_VARIABLE, ROOT, Evidence, StageFailed, run_command

# Not spelled out, or this file would count as one that needs a GPU.
TESTS = """
import json, os, time
import pytest

needs_gpu = getattr(pytest.mark, "gpu")

def told():
    with open(os.environ["XLNET_FAST_EVIDENCE"]) as file:
        return [json.loads(line) for line in file]

@needs_gpu
def test_first():
    assert 1 + 1 == 3, "arithmetic"

@needs_gpu
def test_second():
    (row,) = told()
    assert row["test"].endswith("::test_first") and row["outcome"] == "failed"
    assert "arithmetic" in row["reason"]

def test_for_no_gpu():
    raise SystemExit("was not to be collected")

@needs_gpu
@pytest.mark.skip(reason="later")
def test_skipped():
    pass

@needs_gpu
@pytest.mark.skipif("SLEEP" not in os.environ, reason="slow")
def test_sleeps():
    time.sleep(60)

@needs_gpu
@pytest.mark.skipif("CRASH" not in os.environ, reason="violent")
def test_crashes():
    os.kill(os.getpid(), 11)
"""


@pytest.fixture
def folder(tmp_path):
    """A folder of tests that this project's own conftest does not reach."""
    (tmp_path / "test_gpu.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    gpu: a GPU\n")
    return tmp_path


def run(folder, timeout_s, *options, **environment):
    evidence = folder / "evidence.jsonl"
    command = gpu_tests.command(["test_gpu.py"])
    at = command.index("-n") if "-n" in command else len(command)
    if not options:  # one process
        del command[at : at + 6]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    # Plugins that nobody needs here take most of the start.
    environment |= {"PYTHONPATH": path, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment |= gpu_tests.settings(evidence)
    try:
        last = run_command(
            [*command, *options], timeout_s, folder / "log.txt", folder, environment
        )  # fmt: skip
    except StageFailed as failure:
        last = str(failure)
    return last, Evidence(evidence).read(), (folder / "log.txt").read_text()


def test_a_failure_is_told_before_the_next_test_begins(folder):
    last, rows, log = run(folder, 60)
    assert "exit code 1" in last
    assert "1 failed, 1 passed" in last
    assert [row["outcome"] for row in rows] == ["failed", "counted"]
    assert (rows[0]["test"], rows[0]["when"]) == ("test_gpu.py::test_first", "call")
    assert {name: rows[1][name] for name in ("failed", "passed", "skipped")} == {
        "failed": 1, "passed": 1, "skipped": 3,
    }  # fmt: skip
    assert "arithmetic" in log


def test_when_the_time_is_over_what_ran_is_told(folder):
    last, rows, _ = run(folder, 6, SLEEP="1")
    assert "not done" in last
    assert [(row["outcome"], row.get("test", "")) for row in rows] == [
        ("failed", "test_gpu.py::test_first"), ("interrupted", "test_gpu.py::test_sleeps"),
        ("counted", ""),
    ]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="needs xdist")
def test_several_processes_tell_once_and_a_crash_is_told(folder):
    text = (folder / "test_gpu.py").read_text().replace("(row,) = told()", "return")
    (folder / "test_gpu.py").write_text(text)
    _, rows, _ = run(folder, 60, "-p", "xdist", "-n", "2", CRASH="1")
    failed = {row["test"]: row["reason"] for row in rows if row["outcome"] == "failed"}
    assert set(failed) == {"test_gpu.py::test_first", "test_gpu.py::test_crashes"}
    assert "crashed" in failed["test_gpu.py::test_crashes"]
    assert rows[-1]["outcome"] == "counted"
    assert rows[-1]["failed"] == 2


def test_a_file_that_cannot_be_imported_is_told(folder):
    (folder / "test_gpu.py").write_text("import no_such_module_here\n")
    _, rows, _ = run(folder, 60)
    assert rows[0]["when"] == "collect"
    assert "no_such_module_here" in rows[0]["reason"]


def test_only_files_with_the_gpu_marker_are_collected(tmp_path):
    tests = tmp_path / "tests"
    (tests / "below").mkdir(parents=True)
    (tests / "test_a.py").write_text("import hypothesis\n")
    for name in ("test_b", "test_cuda_small_ops", "test_triton_rel_attention"):
        (tests / "below" / f"{name}.py").write_text("@pytest.mark" + ".gpu\ndef test_b(): pass\n")
    telling, others = gpu_tests.in_order(tests)
    assert [Path(file).stem for file in telling] == [
        "test_triton_rel_attention", "test_cuda_small_ops"
    ]  # fmt: skip
    assert others == [str(Path("tests/below/test_b.py"))]


def test_of_what_shares_compilations_one_test_comes_first():
    from order_of_tests import compiling_first

    class Item:
        def __init__(self, name, group=None):
            self.name, self.group = name, group

        def get_closest_marker(self, name):
            assert name == "compiles"
            return self.group and pytest.mark.compiles(self.group).mark

    items = [Item("a"), Item("b", "x"), Item("c", "x"), Item("d", "y"), Item("e", "x")]
    assert [item.name for item in compiling_first(items)] == ["b", "d", "a", "c", "e"]


class Lost:
    """What pytest gives a plugin, of a test that failed or passed."""

    def __init__(self, failed):
        self.excinfo, self.shouldstop = (ValueError() if failed else None), False


@pytest.mark.parametrize(("failed", "lost"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("is_worker", [False, True])
def test_a_process_without_its_context_ends(is_worker, failed, lost, monkeypatch):
    ended = []
    monkeypatch.setattr(failures.os, "_exit", ended.append)
    monkeypatch.setattr(failures.context, "is_lost", lambda: lost)
    plugin, session = failures.Context(is_worker), Lost(failed=False)
    plugin.pytest_sessionstart(session)
    plugin.pytest_runtest_makereport(item=None, call=Lost(failed))
    plugin.pytest_runtest_makereport(item=None, call=Lost(failed=False))  # its teardown
    plugin.pytest_runtest_logfinish()
    assert ended == ([1] if failed and lost and is_worker else [])
    assert bool(session.shouldstop) == (failed and lost and not is_worker)


def test_a_process_without_a_gpu_has_nothing_to_lose():
    assert not context.is_lost()


def test_of_this_repository_every_kernel_comes_first():
    telling, others = gpu_tests.in_order()
    assert [Path(file).name for file in telling] == list(gpu_tests.TELLING)
    assert others
    assert not set(telling) & set(others)


@pytest.mark.parametrize(("there", "n"), [((), False), (("xdist",), True)])
def test_what_the_machine_lacks_is_not_asked_for(there, n, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name: None if name in ("xdist", "pytest_timeout") and name not in there
        else find("sys" if name in there else name),
    )  # fmt: skip
    monkeypatch.setattr(gpu_tests.os, "cpu_count", lambda: 16)
    command = gpu_tests.command(["tests/test_a.py"])
    assert command[:3] == [sys.executable, "-m", "pytest"]
    assert command[-1] == "tests/test_a.py"
    assert ("-n" in command) == n
    assert not any("timeout" in part for part in command)
    if n:
        at = command.index("-n")
        assert command[at : at + 6] == ["-n", "14", "--dist", "load", "--maxschedchunk", "1"]
    monkeypatch.setattr(gpu_tests.os, "cpu_count", lambda: 1)
    assert gpu_tests.workers() == 1
    assert gpu_tests.why_not() is None
    assert gpu_tests.settings(Path("file")) == {EVIDENCE_VARIABLE: "file"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pytest" in gpu_tests.why_not()
