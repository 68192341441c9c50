"""A qualification from its arguments to the record: the parent's side, which starts no CUDA."""

from __future__ import annotations

import getpass
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from xlnet_fast.builder import lock
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.ops.qualification import files, proof
from xlnet_fast.ops.qualification.record import (
    CRASHED,
    FAILED,
    HUNG,
    NOT_RUN,
    PASSED,
    UNAVAILABLE,
    Identity,
    Record,
    Row,
    read,
    write,
)
from xlnet_fast.qualifier import messages
from xlnet_fast.qualifier.messages import Order
from xlnet_fast.qualifier.processes import CHILD, Died, Hung, TimeOver, talk
from xlnet_fast.qualifier.tasks import BACKENDS, Task, chosen_backends, tasks_of

START_S, SILENCE_S, FULL_SILENCE_S = 120.0, 30.0, 120.0
"""How long a child may take to begin, and how long for one class, before it counts as hung."""
GRACE_S = 5.0
"""A child ends between two classes when its time is over: so much longer one may take."""
COMPILERS = 8
_COMPILED = ("triton",)  # backends whose kernels are compiled at their first call
_TILED = ("triton",)  # whose verdicts are about tiles that a record names
_WEIGHTS = {"triton": 2.0, "sdpa": 0.4}
"""Of the time that is left: to compile takes some, and sdpa runs whatever is found."""
_LOCK = lock.Purpose(
    "qualifies this device", "try later", "set TMPDIR to a folder on a local disk", XLNetFastError
)


@dataclass(frozen=True)
class Step:
    """How far a qualification is: ``done`` of ``total`` steps, and what comes next, in words."""

    text: str
    done: int
    total: int


Progress = Callable[[Step], None]


@dataclass(frozen=True)
class Outcome:
    """The record as it was written, the rows that this run gave it, and where it lies."""

    record: Record
    rows: tuple[Row, ...]
    path: Path

    @property
    def bad(self) -> list[Row]:
        """Rows that show a fault."""
        return [row for row in self.rows if row.status in (FAILED, CRASHED, HUNG)]


def qualify(
    device: str | torch.device | None = None,
    *,
    minutes: float = 2.0,
    full: bool = False,
    backends: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Record:
    """Prove every backend on a device of this machine, time it, and keep the record.

    Each backend runs in a process of its own, so none can harm this one or the others. Verdicts of
    an earlier record of the same device that this run does not reach stay.

    Args:
        device: "cpu", "cuda", "cuda:N" or such a device; default the first GPU, else the CPU.
        minutes: after which nothing new is begun; what was not reached is "not_run".
        full: also fp32 attention on a GPU, more head dims and larger calls.
        backends: names; default all that the device has.
        out: file of the record; default one in the user's cache, which ``auto`` reads.
        progress: called with a ``Step`` before each class.

    Returns:
        The record as it was written.

    Raises:
        ArgumentError: an argument that cannot be used, or a file that cannot be written; an older
            record is then still there.
        XLNetFastError: no process could start on the device.
    """
    return run(device, minutes, full, backends, out, progress).record


def run(
    device: str | torch.device | None = None,
    minutes: float = 2.0,
    full: bool = False,
    backends: Sequence[str] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    command: Sequence[str] | None = None,
    wanted: Callable[[Task], bool] = lambda task: True,
    silence_s: float | None = None,
) -> Outcome:
    """As ``qualify``, with what a command line tells.

    Args:
        command: of a child, default ``CHILD``. wanted: classes, of all; the others are left out.
        silence_s: how long a child may say nothing.
    """
    place = find_device(device)
    if not (isinstance(minutes, (int, float)) and minutes > 0 and math.isfinite(minutes)):
        shown = f"{minutes:g}" if isinstance(minutes, (int, float)) else repr(minutes)
        raise ArgumentError(f"minutes is {shown}, expected a number above 0")
    given = (backends,) if isinstance(backends, str) else backends
    names = chosen_backends(place.type, None if given is None else tuple(given))
    out = None if out is None else Path(out).resolve()  # the file that a link points at
    _refuse_unwritable(files.cache_folder() / "record" if out is None else out)
    silence_s = silence_s or (FULL_SILENCE_S if full else SILENCE_S)
    plan = {name: tuple(filter(wanted, tasks_of(place.type, name, full))) for name in names}
    report = _Report(plan, progress or (lambda step: None))
    with _alone(place, report):
        began_s = time.monotonic()
        session = _Session(place, full, began_s + 60 * minutes, silence_s, command or CHILD, report)
        for number, (name, tasks) in enumerate(plan.items()):
            weights = [_WEIGHTS.get(other, 1.0) for other in list(plan)[number:]]
            session.qualify(name, tasks, weights[0] / sum(weights))
        if session.identity is None:
            reasons = {row.reason for row in report.rows.values() if row.reason}
            if not reasons:
                raise XLNetFastError(
                    f"the {minutes:g} minutes were over before a process had started; allow more "
                    f"with --minutes"
                )
            raise XLNetFastError(f"no process could start on {place}: {'; '.join(sorted(reasons))}")
        rows = report.all_rows()
        path = files.cache_file(session.identity) if out is None else out
        record = Record(
            session.identity, rows, datetime.now(timezone.utc).isoformat(timespec="seconds"),
            round(time.monotonic() - began_s, 1), full, session.tiles or {},
        )  # fmt: skip
        record = with_former(record, path, session.tiles is not None)
        write(record, path)
    proof.forget()
    return Outcome(record, rows, path)


def find_device(device: str | torch.device | None) -> torch.device:
    """The device that is meant, told without starting CUDA.

    Raises:
        ArgumentError: it is none that is qualified, or is not there.
    """
    count = torch.cuda.device_count()
    if device is None:
        return torch.device("cuda", 0) if count else torch.device("cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        found = None
    if found is None or found.type not in BACKENDS:
        raise ArgumentError(f"device is {str(device)!r}, expected cpu, cuda or cuda:N")
    if found.type == "cpu":
        return torch.device("cpu")
    index = found.index or 0
    if index >= count:
        seen = {0: "no GPU", 1: "one GPU, cuda:0"}.get(count, f"{count} GPUs")
        raise ArgumentError(f"device {str(device)!r} is not there: PyTorch sees {seen}")
    return torch.device("cuda", index)


def with_former(record: Record, path: Path, has_tiles: bool) -> Record:
    """The record with those verdicts of the one that it replaces which it has not itself.

    Only where both are of the same device and software; an unreadable one gives nothing. A class
    that passed again without being reached by the clock keeps its former times. Verdicts on Triton
    with other tiles are of no use.

    Args:
        has_tiles: whether Triton took part, so that `record` says with which tiles.
    """
    try:
        former = read(path)
    except ArgumentError:
        return record
    if former.identity != record.identity:
        return record
    if not has_tiles:
        record = replace(record, tiles=former.tiles)
    same = record.tiles == former.tiles
    useful = (row for row in former.rows if same or row.backend not in _TILED)
    new = {(*row.key, row.backend): row for row in record.rows if row.status != NOT_RUN}
    kept = {(*row.key, row.backend): row for row in useful if row.status != NOT_RUN}
    for key, row in new.items():
        if row.status == PASSED and not row.timings and key in kept:
            new[key] = replace(row, timings=kept[key].timings)
    rest = {(*row.key, row.backend): row for row in record.rows}
    rows = tuple((rest | kept | new).values())
    return replace(record, rows=rows, full=record.full or former.full)


def _refuse_unwritable(path: Path) -> None:
    """Before minutes of work: can this file be written, and is nothing else lost by it?"""
    try:
        if path.is_dir():
            raise ArgumentError(f"{path} is a folder; give the name of a file")
        if path.exists() and not _may_be_replaced(path):
            raise ArgumentError(f"{path} exists and is no record: give the name of another file")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ArgumentError(
            f"{path.parent} cannot be written to ({error}); --out FILE writes elsewhere"
        ) from None


def _may_be_replaced(path: Path) -> bool:
    """Whether a file is empty or a record, be it damaged or of another version."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        begin = file.read(200).lstrip()
    return not begin or (begin[:1] == b"{" and b'"schema"' in begin)


@contextmanager
def _alone(device: torch.device, report: _Report) -> Iterator[None]:
    """One qualification of a device at a time: two would falsify each other's times."""
    name = "cpu"
    if device.type == "cuda":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        index = device.index or 0
        chosen = visible[index].strip() if index < len(visible) else ""
        name = "gpu-" + re.sub(r"[^\w-]", "_", chosen or str(index))
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    path = Path(tempfile.gettempdir()) / f"xlnet_fast-qualify-{user}-{name}.lock"

    def tell() -> None:
        report.say("another process qualifies this device; waiting for it")

    if path.is_dir():
        raise XLNetFastError(f"{path}, the lock of this device, is a folder: remove it")
    with lock.held(path, math.inf, tell, _LOCK):
        yield


class _Report:
    """The rows as they come in, and the progress made."""

    def __init__(self, plan: dict[str, tuple[Task, ...]], progress: Progress) -> None:
        self._progress = progress
        self.rows: dict[tuple[str, ...], Row] = {}
        for name, tasks in plan.items():
            for key in (key for task in tasks for key in task.row_keys()):
                op, operands, dtype, head_dim, direction = key
                self.rows[(*key, name)] = Row(
                    op, operands, name, dtype, head_dim, direction, NOT_RUN
                )
        self._steps: dict[tuple[str, ...], int] = dict.fromkeys(self.rows, 0)

    def say(self, text: str) -> None:
        """What comes next."""
        self._progress(Step(text, sum(self._steps.values()), 2 * len(self._steps)))

    def put(self, row: Row, backend: str) -> bool:
        """A verdict, or the same with times; whether this backend was asked for it."""
        key = (*row.key, row.backend)
        if row.backend != backend or key not in self.rows:
            return False
        self.rows[key] = row
        timed = bool(row.timings) or row.status != PASSED
        self._steps[key] = 2 if timed else 1
        return True

    def condemn(self, backend: str, status: str, reason: str) -> None:
        """A backend that crashed or hung: nothing that it did before can be relied on."""
        for key, row in self.rows.items():
            if row.backend == backend and row.status not in (FAILED, UNAVAILABLE):
                self.rows[key] = replace(
                    row, status=status, reason=reason, error=None, bound=None, timings=()
                )
                self._steps[key] = 2

    def all_rows(self) -> tuple[Row, ...]:
        """Of every class that was planned, those that were not reached with the reason."""
        return tuple(
            replace(row, reason="the time was over before") if row.status == NOT_RUN else row
            for row in self.rows.values()
        )


@dataclass
class _Session:
    """The children of one run, one after the other."""

    device: torch.device
    full: bool
    end_s: float
    silence_s: float
    command: Sequence[str]
    report: _Report
    identity: Identity | None = field(default=None)
    tiles: Mapping[str, tuple[int, ...]] | None = field(default=None)

    def qualify(self, backend: str, tasks: tuple[Task, ...], share: float) -> None:
        """All that one backend is asked for, with its share of what time is left."""
        left_s = self.end_s - time.monotonic()
        if left_s <= 0 or not tasks:
            return
        end_s = time.monotonic() + left_s * share
        if backend in _COMPILED:
            self._compile(backend, tasks, end_s)
        doing = "before its first class"
        order = Order(str(self.device), backend, tasks, end_s - time.monotonic(), self.full)
        silence_s = self.silence_s * (4 if backend in _COMPILED else 1)
        talking = talk(
            self.command, order, start_s=START_S, silence_s=silence_s, end_s=end_s + GRACE_S
        )
        try:
            with closing(talking) as conversation:
                for message in conversation:
                    if message.kind == messages.READY:
                        self.identity = self.identity or message.identity
                        doing = "after its start"
                    elif message.kind == messages.TILES:
                        self.tiles = message.tiles
                    elif message.kind == messages.BEGIN:
                        doing = f"in {message.text}"
                        self.report.say(f"{backend}: {message.text}")
                    elif message.row is not None and not self.report.put(message.row, backend):
                        raise Died("sent a verdict that nobody asked for")
        except Died as error:
            self._condemn(backend, CRASHED, f"{error}, {doing}")
        except Hung as error:
            self._condemn(backend, HUNG, f"{error}, {doing}")
        except TimeOver:
            pass  # what was not reached stays "not_run"

    def _condemn(self, backend: str, status: str, reason: str) -> None:
        """It may have been a tile that was chosen: the next run begins with the safe ones."""
        self.report.condemn(backend, status, reason)
        if backend in _TILED:
            self.tiles = {}

    def _compile(self, backend: str, tasks: tuple[Task, ...], end_s: float) -> None:
        """Fill the compiler's cache by several processes; the checks meet what fails."""
        count = min(os.cpu_count() or 1, COMPILERS, len(tasks))
        self.report.say(f"{backend}: compiling on {count} processes")
        middle_s = time.monotonic() + 0.7 * (end_s - time.monotonic())
        stop = threading.Event()
        shares = [(backend, tasks[n::count], middle_s, stop) for n in range(count)]
        threads = [
            threading.Thread(target=self._compile_share, args=share, daemon=True)
            for share in shares
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            stop.set()  # after Ctrl-C

    def _compile_share(
        self, backend: str, tasks: tuple[Task, ...], end_s: float, stop: threading.Event
    ) -> None:
        seconds = end_s - time.monotonic()
        order = Order(str(self.device), backend, tasks, seconds, self.full, messages.COMPILE)
        talking = talk(
            self.command, order, start_s=START_S, silence_s=math.inf, end_s=end_s, stop=stop
        )
        try:
            with closing(talking) as conversation:
                for _ in conversation:
                    pass
        except (Died, Hung, TimeOver):
            return
