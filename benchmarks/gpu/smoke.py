"""Every op of every backend against float64, in under a minute: the first thing to know of a GPU.

    python -m benchmarks.gpu.smoke --device cuda --seconds 45 --out FILE [--backend NAME ...]
        [--only TEXT]
    python -m benchmarks.gpu.smoke --compile --seconds 60 --out FILE

FILE gets one line of JSON for each problem and backend as it is done: passed, failed, raised,
crashed, hung, unavailable or not_run, with the error, its bound and the reason. A crash costs the
problem it happened in. With --compile the Triton kernels of the problems, which are those of the
headline times, are compiled side by side, and nothing is checked. The exit code is 1 when
something failed, 2 when nothing could be run.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..cases.rel_attention import FORWARD_BACKWARD
from ..harness.stages import Evidence, ended_like_an_interrupt
from ..harness.timing import Deadline
from . import context
from .smoke_problems import SIZES, Problem, problems, verdict
from .supervise import Answer, Team, python_module, supervise, work

SMOKE, COMPILE = "smoke", "compile"
BACKENDS = {"cuda": ("triton", "cuda", "sdpa"), "cpu": ("cpu", "sdpa")}
# On a GPU machine Triton compiles while others compute; each worker holds a CUDA context.
WORKERS = {"triton": 6, "cuda": 2}
BAD = ("failed", "raised", "crashed", "hung")
_TASK_S, _FIRST_TASK_S = 30.0, 60.0


def check_all(
    device: str, backends: Sequence[str], seconds: float, evidence: Evidence, only: str = ""
) -> Counter[str]:
    """Check every problem by every backend, side by side; return how many went how.

    only: text that a problem's label must hold.
    """
    labels = [problem.label for problem in problems(device) if only in problem.label]
    deadline, counts, threads = Deadline(seconds), Counter[str](), []
    for backend in backends:
        command = python_module("smoke", "--worker", backend, "--device", device)
        team = Team(command, WORKERS.get(backend, 1), _TASK_S, _FIRST_TASK_S)
        record = _recorder(SMOKE, backend, evidence, counts)
        threads.append(
            threading.Thread(target=supervise, args=(team, labels, record, deadline.left_s))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return counts


def compile_all(seconds: float, evidence: Evidence) -> Counter[str]:
    """Run each distinct set of Triton kernels once, in as many processes as there are cores."""
    labels = [problem.label for problem in to_compile("cuda")]
    counts: Counter[str] = Counter()
    command = python_module("smoke", "--worker", "triton", "--device", "cuda", "--compile")
    workers = max(1, min(14, (os.cpu_count() or 2) - 2))
    supervise(
        Team(command, workers, seconds, seconds), labels,
        _recorder(COMPILE, "triton", evidence, counts), Deadline(seconds).left_s,
    )  # fmt: skip
    return counts


def to_compile(device: str) -> list[Problem]:
    """The problems that together need every kernel, and no two of them the same ones."""
    return [
        problem
        for problem in problems(device)
        if (problem.pass_name == FORWARD_BACKWARD or problem.exactly)
        # Attention takes the same kernels at any size; these take others.
        and (problem.size == SIZES[0] or problem.op in ("masked_softmax", "concat_memory"))
    ]


def _recorder(
    stage: str, backend: str, evidence: Evidence, counts: Counter[str]
) -> Callable[[str, Answer], None]:
    def record(task: str, answer: Answer) -> None:
        answer = dict(answer)
        outcome = answer.pop("outcome")
        counts[outcome] += 1
        evidence.add(stage, outcome, backend=backend, problem=task, **answer)

    return record


def _work(device: str, backend: str, compiling: bool) -> int:
    known = {problem.label: problem for problem in problems(device)}

    def do(task: str) -> Answer:
        if not compiling:
            return verdict(known[task], backend)
        from ..cases.rel_attention import DTYPES

        known[task].compute(backend, DTYPES[known[task].dtype])
        torch.cuda.synchronize()
        return {"outcome": "passed"}

    torch.set_num_threads(1)
    return work(do, context.is_lost)


def summary(counts: Counter[str]) -> str:
    """One line: how many of which outcome."""
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "nothing"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=BACKENDS, default="cuda")
    parser.add_argument("--backend", nargs="+")
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--out", type=Path, default=Path("evidence.jsonl"))
    parser.add_argument("--only", default="", help="problems whose label holds this text")
    parser.add_argument("--compile", action="store_true", help="compile, and check nothing")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return _work(options.device, options.worker, options.compile)
    if options.seconds <= 0:
        parser.error(f"--seconds must be positive, got {options.seconds}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no GPU here", file=sys.stderr)
        return 2
    evidence = Evidence(options.out)
    with ended_like_an_interrupt():
        if options.compile:
            counts = compile_all(options.seconds, evidence)
        else:
            backends = options.backend or BACKENDS[options.device]
            counts = check_all(options.device, backends, options.seconds, evidence, options.only)
    print(summary(counts), flush=True)
    if any(counts[outcome] for outcome in BAD):
        return 1
    return 0 if counts["passed"] else 2


if __name__ == "__main__":
    raise SystemExit(main())
