"""Processes forked from this one as it was before its first test.

They have imported all that the tests import, which takes seconds to do anew. Forking the process
in which tests ran fails once autograd has run in it; so one process, the server, is forked when the
tests have been collected, and forks the others.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NoReturn

import torch

PRINTED_ON = (1, 2)
_server: Connection | None = None


def start() -> None:
    """Fork the server, which ends with this process.

    Not where there is a GPU: its driver works in no process forked from one that has asked it. Nor
    where tests of the TPU kernels were collected: JAX has threads, which no fork has.
    """
    global _server
    cannot = torch.cuda.is_available() or "jax" in sys.modules or not hasattr(os, "fork")
    if _server is not None or cannot:
        return
    _server, theirs = multiprocessing.Pipe()
    if os.fork() == 0:
        _server.close()
        _serve(theirs)
    theirs.close()


def process(function: Callable[..., object], *args: Any) -> Any:
    """One that has not started yet, as ``multiprocessing.Process``; all given is pickled."""
    if _server is None:
        return multiprocessing.get_context("spawn").Process(target=function, args=args)
    return _Process(_server, function, *args)


class _Process:
    def __init__(self, server: Connection, function: Callable[..., object], *args: Any) -> None:
        self._server, self._work = server, pickle.dumps((function, args))
        self.pid = 0
        self.exitcode: int | None = None

    def start(self) -> None:
        """It prints where this process prints now, which pytest may keep."""
        self._server.send(self._work)
        for stream in PRINTED_ON:
            send_handle(self._server, stream, None)
        self.pid = self._server.recv()

    def is_alive(self) -> bool:
        assert self.pid, "it has not started"
        if self.exitcode is None:
            self._server.send(self.pid)
            self.exitcode = self._server.recv()
        return self.exitcode is None

    def join(self, timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)

    def kill(self) -> None:
        if self.is_alive():
            os.kill(self.pid, signal.SIGKILL)


def _serve(connection: Connection) -> NoReturn:
    """Answer work with the id of its process, and an id with the exit code or None."""
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            os._exit(0)
        if isinstance(asked, int):
            done, status = os.waitpid(asked, os.WNOHANG)
            connection.send(os.waitstatus_to_exitcode(status) if done else None)
            continue
        streams = [recv_handle(connection) for _ in PRINTED_ON]
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGINT, interrupted)
            connection.close()
            for stream, own in zip(streams, PRINTED_ON, strict=True):
                os.dup2(stream, own)
            _run(asked)
        for stream in streams:
            os.close(stream)
        connection.send(pid)


def _run(work: bytes) -> NoReturn:
    code = 1
    try:
        function, args = pickle.loads(work)
        function(*args)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
