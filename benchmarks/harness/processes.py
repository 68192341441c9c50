"""A child process that answers a line of JSON with a line of JSON."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

from .stages import without_paths


class ProcessFailed(RuntimeError):
    """A process ended, did not answer in time, or answered with an error."""


class JsonProcess:
    """Asks one process, which is started by the first question."""

    def __init__(
        self, command: Sequence[str], settings: Mapping[str, str], timeout_s: float = 1200.0
    ) -> None:
        """`settings`: added to the environment. `timeout_s`: for one answer."""
        self._command, self._settings, self._timeout_s = list(command), settings, timeout_s
        self._errors: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process_id(self) -> int:
        """Of the process; raises ProcessFailed before the first question."""
        if self._process is None:
            raise ProcessFailed("the process was not started")
        return self._process.pid

    def ask(self, **message: Any) -> dict[str, Any]:
        """Return the answer to a message.

        Raises ProcessFailed, in one line: the answer is an error, the process cannot be started or
        has ended, or there is no answer in time.
        """
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
        except (BrokenPipeError, ValueError):  # it ended, or was ended for being late
            raise self._ended(process) from None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            if not selector.select(self._timeout_s):
                self.close()
                raise ProcessFailed(f"no answer within {self._timeout_s:g} s")
        line = process.stdout.readline()
        if not line:
            raise self._ended(process)
        try:
            answer = json.loads(line)
        except ValueError:
            raise ProcessFailed(f"an answer that is no JSON: {line[:100]!r}") from None
        if "error" in answer:
            raise ProcessFailed(without_paths(answer["error"]))
        return dict(answer)

    def _start(self) -> subprocess.Popen[bytes]:
        # Nobody reads it while the process runs, and a pipe would fill.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,  # a selector cannot see lines that a buffer already holds
                env=os.environ | dict(self._settings),
            )
        except OSError as error:
            raise ProcessFailed(f"it cannot be started: {error.strerror}") from error
        return self._process

    def _ended(self, process: subprocess.Popen[bytes]) -> ProcessFailed:
        """Why there will be no answer: the last that was said, and how it ended."""
        code = process.wait()
        assert self._errors is not None
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        last = f": {without_paths(said[-1].strip())}"[:300] if said else ""
        return ProcessFailed(f"the process ended with {code}{last}")

    def close(self) -> None:
        """End the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        if self._errors is not None:
            self._errors.close()
