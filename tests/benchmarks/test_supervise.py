"""Tasks in processes that crash, hang and lie: each costs its own task and no other."""

import json
import sys
import threading

import pytest
from processes import has_ended

from benchmarks.gpu import supervise as module
from benchmarks.gpu.supervise import POISONED, Team, supervise
from benchmarks.harness.stages import StageFailed, run_command

WORKER = f"""
import json, os, signal, sys, time
for line in sys.stdin:
    task = line.strip()
    if task.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if task.startswith("leave"):
        os._exit(3)
    if task.startswith("hang"):
        time.sleep(60)
    answer = {{"outcome": "passed", "process": os.getpid()}}
    if task.startswith("poison"):
        answer[{POISONED!r}] = True
    print(json.dumps(answer), flush=True)
"""
TEAM = Team([sys.executable, "-S", "-c", WORKER], task_s=1.0, first_task_s=5.0)


def outcomes(tasks, team=TEAM, left_s=lambda: 100.0):
    found = {}

    def record(task, answer):
        assert task not in found
        found[task] = answer

    supervise(team, tasks, record, left_s)
    return found


def test_a_crash_costs_its_task_and_the_next_gets_a_new_process():
    found = outcomes(["a", "b", "crash", "c", "leave", "d"])
    assert [found[task]["outcome"] for task in ("a", "b", "c", "d")] == ["passed"] * 4
    assert found["crash"]["reason"] == "its process ended with signal 11"
    assert found["leave"] == {
        "outcome": "crashed", "reason": "its process ended with exit code 3",
        "seconds": found["leave"]["seconds"],
    }  # fmt: skip
    processes = [found[task]["process"] for task in ("a", "b", "c", "d")]
    assert processes[0] == processes[1]
    assert len(set(processes)) == 3


def test_a_hang_is_ended_and_told():
    found = outcomes(["a", "hang", "b"])
    assert found["hang"]["outcome"] == "hung"
    assert "1 s" in found["hang"]["reason"]
    assert found["b"]["outcome"] == "passed"


def test_a_worker_that_cannot_be_trusted_any_more_is_replaced():
    found = outcomes(["poison", "a"])
    assert found["poison"]["outcome"] == found["a"]["outcome"] == "passed"
    assert found["poison"]["process"] != found["a"]["process"]


def test_what_no_time_is_left_for_is_told_too():
    now = iter([100.0, 100.0])
    found = outcomes(["a", "b", "c"], left_s=lambda: next(now, -1.0))
    assert found["a"]["outcome"] == "passed"
    assert found["b"]["outcome"] == found["c"]["outcome"] == "not_run"


def test_several_workers_share_the_tasks_and_record_one_at_a_time():
    inside = threading.Semaphore(1)
    found = []

    def record(task, answer):
        assert inside.acquire(blocking=False)
        found.append((task, answer["process"]))
        inside.release()

    tasks = [f"task {n}" for n in range(20)]
    supervise(Team(TEAM.command, workers=3), tasks, record, lambda: 100.0)
    assert sorted(task for task, _ in found) == sorted(tasks)
    assert 1 <= len({process for _, process in found}) <= 3


def test_a_worker_answers_what_raised_and_leaves_when_poisoned(monkeypatch, capfd):
    def do(task):
        print("said beside")
        if task == "bad":
            raise ArithmeticError("not finite")
        return {"outcome": "passed"}

    monkeypatch.setattr(sys, "stdin", iter(["good\n", "bad\n", "good\n"]))
    saved = module.os.dup(1)
    try:
        code = module.work(do, is_poisoned=lambda: True)
    finally:
        module.os.dup2(saved, 1)
    assert code == 1
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines() if line[0] == "{"]
    assert [line["outcome"] for line in lines] == ["passed", "raised"]
    assert [POISONED in line for line in lines] == [False, True]
    assert lines[1]["reason"] == "ArithmeticError: not finite"


def test_workers_end_with_the_stage_that_started_them(tmp_path):
    """A task that hangs, in a command whose time is over."""
    note = tmp_path / "note"
    worker = (
        "import os, pathlib, sys, time; "
        f"pathlib.Path({str(note)!r}).write_text(str(os.getpid())); time.sleep(60)"
    )
    code = (
        "import sys\n"
        "from benchmarks.gpu.supervise import Team, supervise\n"
        f"team = Team([sys.executable, '-S', '-c', {worker!r}])\n"
        "supervise(team, ['hang'], print, lambda: 60.0)\n"
    )
    with pytest.raises(StageFailed, match="not done"):
        run_command([sys.executable, "-c", code], 3)
    assert has_ended(int(note.read_text()))


def test_a_command_that_cannot_be_started_is_an_error():
    with pytest.raises(FileNotFoundError):
        module._Worker(["no-such-program-here"])
