"""A pytest plugin that tells of a failed test as it happens: `-p benchmarks.gpu.failures`.

Each failed test is a line of the file that the variable XLNET_FAST_EVIDENCE names; so are the
numbers at the end. Where pytest is told to end (SIGTERM), the tests that were running are named.
Processes of xdist report to the one that started them, which writes.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from ..stages import EVIDENCE_VARIABLE, Evidence

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


def _last_lines(text: str) -> str:
    """The end of a failure's text, where the error is."""
    return "\n".join(text.strip().splitlines()[-_LINES:])[-2000:]


def pytest_configure(config: Any) -> None:
    """Take part in the process that the reports arrive in."""
    if hasattr(config, "workerinput"):
        return
    failures = Failures(Evidence(Path(os.environ[EVIDENCE_VARIABLE])))
    config.pluginmanager.register(failures, "xlnet-fast-failures")
    signal.signal(signal.SIGTERM, failures.ended)
