"""Stages that run one after the other: each a process with a limit, each leaving evidence at once.

Whatever happens is appended to one file, a line of JSON for each result, and flushed: a machine
that is taken away in the middle leaves what was found until then.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE_FILE = "evidence.jsonl"
EVIDENCE_VARIABLE = "XLNET_FAST_EVIDENCE"
# Between being asked to end and being killed: enough to write what was running.
_GRACE_S = 3.0


class Evidence:
    """A file of one JSON object a line, appended to by several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, stage: str, outcome: str, **fields: Any) -> None:
        """Append one result: its stage, how it went ("passed", "failed", ...) and what is known.

        A line is one write at the end of the file, so lines of several processes do not mix.
        """
        line = json.dumps({"stage": stage, "outcome": outcome, **fields}, default=str) + "\n"
        data = without_paths(line).encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def read(self, stage: str | None = None) -> list[dict[str, Any]]:
        """Return the results so far, of one stage or of all; half a last line counts as none."""
        found = []
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        for line in text.splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return [row for row in found if stage in (None, row["stage"])]


@dataclass
class StageResult:
    """How a stage went: "ok", "failed" or "skipped", with one line of detail."""

    name: str
    status: str
    seconds: float = 0.0
    detail: str = ""


@dataclass
class StageRunner:
    """Runs stages one after the other; a failing one is recorded and the next one begins."""

    say: Callable[[str], None]
    evidence: Evidence | None = None
    results: list[StageResult] = field(default_factory=list)
    clock: Callable[[], float] = time.monotonic

    def run(self, name: str, stage: Callable[[], str | None], skip: str | None = None) -> None:
        """Run a stage, which raises to fail and may return a line of detail.

        skip: a reason not to run it, which is recorded and is no failure.
        """
        if skip is not None:
            self._end(StageResult(name, "skipped", detail=skip))
            self.say(f"{name}: skipped, {skip}")
            return
        self.say(f"{name} ...")
        if self.evidence is not None:
            self.evidence.add(name, "begun")
        start = self.clock()
        try:
            status, detail = "ok", stage() or ""
        except Exception as error:
            from .timing import describe

            status, detail = "failed", describe(error)
        seconds = self.clock() - start
        self._end(StageResult(name, status, round(seconds, 1), detail))
        self.say(f"{name}: {status} after {seconds:.0f} s{', ' + detail if detail else ''}")

    def failed(self) -> list[str]:
        """Return the names of the stages that failed."""
        return [result.name for result in self.results if result.status == "failed"]

    def _end(self, result: StageResult) -> None:
        self.results.append(result)
        if self.evidence is not None:
            self.evidence.add(
                result.name, result.status, seconds=result.seconds, detail=result.detail
            )


class StageFailed(Exception):
    """A command of a stage ended with an error."""


def run_command(
    command: Sequence[str],
    timeout_s: float,
    log: Path | None = None,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run a command; return the last line it printed.

    log: the file that its output is appended to line by line, below the command's own name; without
    it, the output goes on to the terminal. environment: variables beside those of this process.
    Raises StageFailed with that last line when the command fails or takes longer than `timeout_s`
    seconds. It and every process it started are then ended, with a moment to write what they know.
    """
    timeout_s = max(timeout_s, 1.0)
    process = subprocess.Popen(
        list(command),
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE if log is not None else None,
        stderr=subprocess.STDOUT if log is not None else None,
        start_new_session=True,
        text=True,
        errors="replace",
    )
    last: list[str] = [""]
    reader = None
    if log is not None:
        append(log, f"\n$ {' '.join(command[:3])}\n")
        reader = threading.Thread(target=_copy, args=(process.stdout, log, last), daemon=True)
        reader.start()
    late = False
    try:
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        # Also after a good end: what a command leaves behind would disturb the next one.
        end_group(process)
        if reader is not None:
            reader.join(_GRACE_S)
    where = f" (see {log.name})" if log is not None else ""
    if late:
        raise StageFailed(f"not done after {timeout_s:.0f} s{where} {last[0]}".strip())
    if process.returncode:
        raise StageFailed(f"exit code {process.returncode}{where} {last[0]}".strip())
    return last[0]


def end_group(process: subprocess.Popen[Any]) -> None:
    """End a process that leads a session, and all that it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def ended_like_an_interrupt() -> Iterator[None]:
    """Within the block a SIGTERM raises SystemExit, so that children are ended too."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def append(log: Path, text: str) -> None:
    """Add text to a log, without the folders of this machine."""
    with log.open("a", encoding="utf-8") as file:
        file.write(without_paths(text))


def _copy(stream: IO[str], log: Path, last: list[str]) -> None:
    for line in stream:
        append(log, line)
        if line.strip():
            last[0] = without_paths(line.strip())


def without_paths(output: str) -> str:
    """Return output without the folders of this machine, which are nobody's business elsewhere."""
    output = output.replace(str(ROOT) + os.sep, "").replace(str(ROOT), ".")
    for folder in (sys.prefix, sys.base_prefix):
        output = output.replace(folder, "<python>")
    home = str(Path.home())
    return output.replace(home, "~") if len(home) > 1 else output
