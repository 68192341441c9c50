"""Stages: what fails, hangs or is killed leaves its evidence and does not stop the others."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
from processes import has_ended

from benchmarks.harness import stages
from benchmarks.harness.stages import ROOT, Evidence, StageFailed, StageRunner, run_command


def python(code):
    return [sys.executable, "-c", code]


def test_a_failing_stage_does_not_stop_the_others(tmp_path):
    said, done = [], []
    now = iter(range(100))
    evidence = Evidence(tmp_path / "evidence.jsonl")
    runner = StageRunner(said.append, evidence, clock=lambda: next(now))
    runner.run("first", lambda: done.append(1) or "fine")

    def fails():
        assert evidence.read("second") == [{"stage": "second", "outcome": "begun"}]
        raise StageFailed("compiler exploded\nlong trace")

    runner.run("second", fails)
    runner.run("third", lambda: pytest.fail("was to be skipped"), skip="there is no GPU here")
    runner.run("fourth", lambda: done.append(4))
    assert done == [1, 4]
    assert [r.status for r in runner.results] == ["ok", "failed", "skipped", "ok"]
    assert runner.failed() == ["second"]
    assert runner.results[1].detail == "StageFailed: compiler exploded"
    assert runner.results[0].seconds == 1
    assert any("second: failed" in line and "exploded" in line for line in said)
    told = [(row["stage"], row["outcome"]) for row in evidence.read()]
    assert told == [
        ("first", "begun"), ("first", "ok"), ("second", "begun"), ("second", "failed"),
        ("third", "skipped"), ("fourth", "begun"), ("fourth", "ok"),
    ]  # fmt: skip


def test_a_command_gives_its_last_line_and_a_log_without_paths(tmp_path):
    log = tmp_path / "log.txt"
    code = f"print('a'); print({str(ROOT)!r} + '/setup.py'); print('last')"
    assert run_command(python(code), 60, log) == "last"
    assert log.read_text().splitlines()[-3:] == ["a", "setup.py", "last"]
    assert str(ROOT) not in log.read_text()
    assert run_command(python("print('again')"), 60, log) == "again"
    assert "last" in log.read_text()  # of the command before


def test_a_failing_and_a_slow_command_raise_and_keep_their_output(tmp_path):
    log = tmp_path / "log.txt"
    fails = "print('why', flush=True); raise SystemExit(3)"
    with pytest.raises(StageFailed, match=r"exit code 3 \(see log.txt\) why"):
        run_command(python(fails), 60, log)
    slow = "import time; print('began', flush=True); time.sleep(60)"
    with pytest.raises(StageFailed, match=r"not done after 1 s \(see log.txt\) began"):
        run_command(python(slow), 0.5, log)
    assert log.read_text().endswith("began\n")


def test_a_killed_command_fails_and_what_it_told_stays(tmp_path):
    path = tmp_path / "evidence.jsonl"
    code = (
        "import os, signal, pathlib\n"
        "from benchmarks.harness.stages import Evidence\n"
        f"Evidence(pathlib.Path({str(path)!r})).add('smoke', 'passed', problem='first')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    runner = StageRunner(lambda text: None, Evidence(path))
    runner.run("smoke", lambda: run_command(python(code), 60))
    assert [row["outcome"] for row in Evidence(path).read()] == ["begun", "passed", "failed"]
    assert "exit code -9" in runner.results[0].detail


def test_with_a_command_all_that_it_started_ends(tmp_path):
    note = tmp_path / "note"
    code = (
        "import pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    stages._GRACE_S, before = 0.2, stages._GRACE_S
    try:
        with pytest.raises(StageFailed, match="not done"):
            run_command(python(code), 2, tmp_path / "log.txt")
    finally:
        stages._GRACE_S = before
    assert has_ended(int(note.read_text()))


def test_a_command_gets_its_variables_and_a_moment_to_end(tmp_path):
    log = tmp_path / "log.txt"
    code = (
        "import os, signal, sys, time\n"
        "def leave(*_): print('asked to end', os.environ['SAID'], flush=True); os._exit(1)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "print('ready', flush=True); time.sleep(60)\n"
    )
    with pytest.raises(StageFailed, match="asked to end yes"):
        run_command(python(code), 2, log, environment={"SAID": "yes"})


def test_a_run_that_is_told_to_end_ends_its_command(tmp_path):
    note = tmp_path / "note"
    inner = f"import os, pathlib, time; pathlib.Path({str(note)!r}).write_text(str(os.getpid())); "
    code = (
        "import sys\n"
        "from benchmarks.harness.stages import ended_like_an_interrupt, run_command\n"
        "with ended_like_an_interrupt():\n"
        f"    run_command([sys.executable, '-c', {inner + 'time.sleep(60)'!r}], 60)\n"
    )
    outer = subprocess.Popen(python(code), cwd=ROOT)
    try:
        while not (note.exists() and note.read_text()):
            assert outer.poll() is None
            time.sleep(0.02)
        outer.send_signal(signal.SIGTERM)
        assert outer.wait(timeout=20) == 128 + signal.SIGTERM
        assert has_ended(int(note.read_text()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            outer.kill()


def test_evidence_is_a_line_for_each_result_whoever_writes(tmp_path):
    evidence = Evidence(tmp_path / "evidence.jsonl")
    assert evidence.read() == []
    evidence.add("smoke", "failed", reason=f"{ROOT}/setup.py\nsecond line", error=float("inf"))
    with evidence.path.open("a") as file:  # a machine that is gone in the middle of a line
        file.write('{"stage": "smo')
    assert len(evidence.read()) == 1
    assert evidence.read("smoke")[0]["reason"] == "setup.py\nsecond line"
    assert evidence.read("tests") == []
    assert os.stat(evidence.path).st_mode & 0o400
