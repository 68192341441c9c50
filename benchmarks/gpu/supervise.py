"""Runs many small tasks in processes that may crash or hang, and loses none of the results.

A worker is a process that reads the names of tasks from its standard input, one a line, and
answers each with one line of JSON. One that dies, or does not answer in time, costs its task; the
next task gets a new worker.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..harness.stages import ROOT, without_paths

Answer = dict[str, Any]
# In an answer: the worker's process can no longer be trusted, and it leaves.
POISONED = "poisoned"


@dataclass(frozen=True)
class Team:
    """Workers that share a list of tasks.

    command: starts one. workers: at most so many at a time. task_s: the longest that a task may
    take, the first of a worker with the time its imports take.
    """

    command: Sequence[str]
    workers: int = 1
    task_s: float = 60.0
    first_task_s: float = 120.0


def supervise(
    team: Team,
    tasks: Sequence[str],
    record: Callable[[str, Answer], None],
    left_s: Callable[[], float],
) -> None:
    """Have every task done; `record` gets each task's name and answer as soon as there is one.

    An answer has "outcome": the worker's own, or "crashed", "hung", and "not_run" once no time is
    left. record: may be called by several threads, one at a time.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    lock = threading.Lock()

    def told(task: str, answer: Answer) -> None:
        with lock:
            record(task, answer)

    threads = [
        threading.Thread(target=_serve, args=(team, waiting, told, left_s), daemon=True)
        for _ in range(min(team.workers, len(tasks)))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(
    team: Team,
    waiting: queue.SimpleQueue[str],
    record: Callable[[str, Answer], None],
    left_s: Callable[[], float],
) -> None:
    worker: _Worker | None = None
    try:
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            if left_s() <= 0:
                record(task, {"outcome": "not_run", "reason": "no time was left"})
                continue
            limit = team.task_s
            if worker is None or not worker.alive():
                worker, limit = _Worker(team.command), team.first_task_s
            start = time.monotonic()
            answer = worker.ask(task, min(limit, max(left_s(), 0.1)))
            answer.setdefault("seconds", round(time.monotonic() - start, 2))
            if answer["outcome"] == "hung" and left_s() <= 0:
                answer = {"outcome": "not_run", "reason": "no time was left when it ran"}
            if answer.pop(POISONED, False) or answer["outcome"] in ("crashed", "hung", "not_run"):
                worker.end()
                worker = None
            record(task, answer)
    finally:
        if worker is not None:
            worker.end()


class _Worker:
    """One process and what it said."""

    def __init__(self, command: Sequence[str]) -> None:
        # In the session of its parent, so that whoever ends that ends this too.
        self._process = subprocess.Popen(
            list(command), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, task: str, limit_s: float) -> Answer:
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(task + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=limit_s)
        except queue.Empty:
            return {"outcome": "hung", "reason": f"no answer after {limit_s:.0f} s"}
        except OSError:  # it left just before
            line = None
        if line is None:
            code = self._process.wait()
            reason = f"signal {-code}" if code < 0 else f"exit code {code}"
            return {"outcome": "crashed", "reason": f"its process ended with {reason}"}
        answer: Answer = json.loads(line)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def work(do: Callable[[str], Answer], is_poisoned: Callable[[], bool] = lambda: False) -> int:
    """Be a worker: answer the tasks on standard input by `do`, which may raise.

    What else is printed goes to standard error. Returns an exit code.
    """
    results: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = do(line.strip())
        except Exception as error:
            from ..harness.timing import describe

            answer = {"outcome": "raised", "reason": without_paths(describe(error))}
        if answer["outcome"] == "raised" and is_poisoned():
            answer[POISONED] = True
        print(json.dumps(answer), file=results, flush=True)
        if POISONED in answer:
            return 1
    return 0


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this folder."""
    package = __package__ or Path(__file__).parent.name
    return [sys.executable, "-m", f"{package}.{module}", *arguments]
