"""A pytest plugin that tells of a failed test as it happens: `-p benchmarks.gpu.failures`.

Each failed test is a line of the file that the variable XLNET_FAST_EVIDENCE names; so are the
numbers at the end. Where pytest is told to end (SIGTERM), the tests that were running are named.
Processes of xdist report to the one that started them, which writes.

After a failure that costs the CUDA context no test of that process could pass: a process of xdist
then ends, and gets a successor; a single one stops.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from ..harness.stages import EVIDENCE_VARIABLE, Evidence
from . import context

STAGE = "GPU tests"
_LINES = 12  # of a failure's text


class Failures:
    """Writes what fails; the rest it counts."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._running: dict[str, None] = {}
        self._counts: Counter[str] = Counter()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._running[nodeid] = None

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._running.pop(nodeid, None)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A report of one phase of a test, from a worker as soon as it has it."""
        if report.failed:
            self._counts["failed"] += 1
            self._evidence.add(
                STAGE, "failed", test=report.nodeid, when=report.when,
                seconds=round(report.duration, 1), reason=_last_lines(report.longreprtext),
            )  # fmt: skip
        elif report.skipped or report.when == "call":
            self._counts[report.outcome] += 1

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported."""
        if report.failed:
            self._counts["failed"] += 1
            reason = _last_lines(report.longreprtext)
            self._evidence.add(STAGE, "failed", test=report.nodeid, when="collect", reason=reason)

    def pytest_sessionfinish(self) -> None:
        self._evidence.add(STAGE, "counted", **self._counts)

    def ended(self, number: int, frame: object) -> None:
        """The time is over."""
        for test in self._running:
            self._evidence.add(STAGE, "interrupted", test=test, reason="ran when time was over")
        self._evidence.add(STAGE, "counted", **self._counts)
        os._exit(128 + number)


class Context:
    """Ends a process that lost its CUDA context."""

    def __init__(self, is_worker: bool) -> None:
        self._is_worker, self._failed = is_worker, False
        self._session: Any = None

    def pytest_sessionstart(self, session: Any) -> None:
        self._session = session

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        self._failed = self._failed or call.excinfo is not None

    def pytest_runtest_logfinish(self) -> None:
        """By now the report of the failure is sent."""
        if self._failed and context.is_lost():
            if self._is_worker:
                os._exit(1)
            else:
                self._session.shouldstop = "the CUDA context is lost"
        self._failed = False


def _last_lines(text: str) -> str:
    """The end of a failure's text, where the error is."""
    return "\n".join(text.strip().splitlines()[-_LINES:])[-2000:]


def pytest_configure(config: Any) -> None:
    """Write in the process that the reports arrive in."""
    is_worker = hasattr(config, "workerinput")
    config.pluginmanager.register(Context(is_worker), "xlnet-fast-context")
    if is_worker:
        return
    failures = Failures(Evidence(Path(os.environ[EVIDENCE_VARIABLE])))
    config.pluginmanager.register(failures, "xlnet-fast-failures")
    signal.signal(signal.SIGTERM, failures.ended)
