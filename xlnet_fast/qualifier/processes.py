"""Children of a qualification: started, listened to, and ended whatever they do."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO

from xlnet_fast.qualifier.messages import DONE, FATAL, READY, Garbage, Message, Order, read_line

_ROOT = str(Path(__file__).resolve().parents[2])
CHILD = (
    sys.executable,
    "-c",
    # This very package, wherever it lies, without its folder's neighbours on the path.
    "import sys; sys.path[:] = [p for p in sys.path if p]; "  # not the folder it happens to be in
    f"sys.path.insert(0, {_ROOT!r}); import xlnet_fast; sys.path.remove({_ROOT!r}); "
    "from xlnet_fast.qualifier.child import main; main()",
)
"""The command of a child."""


class Died(Exception):
    """A child ended before it was done, or said nonsense; how, in words."""


class Hung(Exception):
    """A child said nothing for too long."""


class TimeOver(Exception):
    """The time for a child ended before its work."""


def talk(
    command: Sequence[str],
    order: Order,
    *,
    start_s: float,
    silence_s: float,
    end_s: float,
    stop: threading.Event | None = None,
) -> Generator[Message, None, None]:
    """What a child says, message by message, to its last; the child ends with this generator.

    Args:
        start_s: how long it may take to its first message. silence_s: between any other two.
        end_s: by ``time.monotonic``, when it is ended. stop: ends it, too, once it is set.

    Raises:
        Died, Hung, TimeOver: instead of the next message.
    """
    with tempfile.TemporaryFile() as errors:
        process = _start(command, errors)
        try:
            lines = _listen(process, order)
            ready, limit_s = False, start_s
            while True:
                text = _next(lines, time.monotonic() + limit_s, end_s, stop)
                if text is None:
                    raise Died(_how(process, errors))
                try:
                    message = read_line(text)
                except Garbage as garbage:
                    if not ready:
                        continue  # something that a library prints as it is imported
                    raise Died(f"sent what is no message: {garbage}") from None
                if message.kind == FATAL:
                    raise Died(f"broke its device: {message.text}")
                ready, limit_s = ready or message.kind == READY, silence_s
                yield message
                if message.kind == DONE:
                    return
        finally:
            _end(process)


def _start(command: Sequence[str], errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C reaches this process, which then ends the whole group."""
    environment = {
        name: text
        for name, text in os.environ.items()
        if name not in ("XLNET_FAST_QUALIFY", "WORLD_SIZE", "RANK", "LOCAL_RANK")
    }
    environment["XLNET_FAST_NO_WARN"] = "1"
    return subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        env=environment, start_new_session=sys.platform != "win32",
    )  # fmt: skip


def _listen(process: subprocess.Popen[bytes], order: Order) -> queue.Queue[str | None]:
    """Give the order; the lines that come back, then None."""
    assert process.stdin is not None
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    stdin, stdout = process.stdin, process.stdout

    def pump() -> None:
        for line in stdout:
            lines.put(line.decode("utf-8", errors="replace"))
        lines.put(None)

    threading.Thread(target=pump, daemon=True).start()
    try:
        stdin.write(f"{order.to_json()}\n".encode())
        stdin.flush()  # it stays open: a child whose parent is gone reads its end
    except OSError:
        pass  # it is dead already, which its output tells
    return lines


def _next(
    lines: queue.Queue[str | None], hung_s: float, end_s: float, stop: threading.Event | None
) -> str | None:
    """The next line, None after the last; raises as :func:`talk`."""
    began_s = time.monotonic()
    while True:
        now_s = time.monotonic()
        if now_s >= end_s or (stop is not None and stop.is_set()):
            raise TimeOver
        if now_s >= hung_s:
            raise Hung(f"said nothing for {hung_s - began_s:.0f} seconds")
        try:
            return lines.get(timeout=min(0.5, hung_s - now_s, end_s - now_s))
        except queue.Empty:
            continue


def _how(process: subprocess.Popen[bytes], errors: IO[bytes]) -> str:
    """How a process ended, with the last line it wrote."""
    try:
        code = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return "closed its output"
    text = f"ended with exit code {code}"
    if code < 0:
        try:
            text = f"died of {signal.Signals(-code).name}"
        except ValueError:
            text = f"died of signal {-code}"
    errors.seek(0)
    lines = [x for x in errors.read().decode("utf-8", errors="replace").splitlines() if x.strip()]
    return f"{text}: {lines[-1].strip()[:200]}" if lines else text


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a child and what it started."""
    try:
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it has ended
    process.wait()
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except OSError:
            pass  # an order that it never read
