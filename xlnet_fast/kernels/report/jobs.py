"""Compilations, several at a time, and what is said of a name that none has."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from xlnet_fast.errors import ArgumentError, BackendUnavailable

Job = TypeVar("Job")
Result = TypeVar("Result")


def expect_known(name: str, values: Sequence[Any], known: Sequence[Any]) -> None:
    """Raise ArgumentError at the first of the values that is not known."""
    for value in values:
        if value not in known:
            raise ArgumentError(f"{name} {value!r} is not one of {', '.join(map(str, known))}")


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    workers: int,
    on_progress: Callable[[int, int], None] | None,
    *,
    threads: bool = False,
) -> list[Result]:
    """What the function makes of each job, in the order of the jobs.

    Args:
        function: of a module, if other processes are to run it.
        workers: processes, or threads of this one; 1 is a thread.
        on_progress: called with (done, total) after each job.
        threads: for a function that waits for other programs.

    Raises:
        BackendUnavailable: a process was killed, or the main program is not guarded.
        Exception: what the function raised for the first of the jobs that failed.
    """
    pool: Executor
    if threads or workers <= 1:
        pool = ThreadPoolExecutor(max(workers, 1))
    else:  # fork would copy the locks of torch's and LLVM's threads in whatever state they are
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    results: list[Result] = []
    try:
        with pool:
            for result in pool.map(function, jobs):
                results.append(result)
                if on_progress is not None:
                    on_progress(len(results), len(jobs))
    except BrokenProcessPool as error:
        raise BackendUnavailable(
            "a compiling process ended: it was killed, or the program that called for the report "
            "does so outside of `if __name__ == '__main__':`; workers=1 needs neither"
        ) from error
    return results
