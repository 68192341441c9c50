"""One record for all processes of a distributed job on a host.

The first process that asks pins what it found, "none" included, for all of them, so that they run
the same backends even if a record is renewed meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

from xlnet_fast.builder import lock
from xlnet_fast.errors import XLNetFastError
from xlnet_fast.ops.qualification.files import (
    FILE_VARIABLE,
    SWITCHED_OFF,
    Found,
    cache_folder,
    look,
    slug,
)
from xlnet_fast.ops.qualification.record import Identity, parse
from xlnet_fast.ops.qualification.telling import warn_once

_KEPT_S = 7 * 86400.0
_PATIENCE_S = 30.0
_LOCK = lock.Purpose(
    "pins a record", "try later", "set XLNET_FAST_CACHE to a folder on a local disk", XLNetFastError
)


def is_job() -> bool:
    """Whether this process is one of several of a distributed job."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size() > 1
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def _job_key(identity: Identity) -> str:
    """The same for the processes of a job on this host that would look for the same record.

    They are children of one launcher, told from a later process of the same number by its start.
    """
    parent = os.getppid()
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
    variables = (os.environ.get(name, "") for name in (*names, FILE_VARIABLE))
    parts = [str(parent), _start_of(parent), *variables, *map(str, astuple(identity))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _start_of(process: int) -> str:
    """When a process began, in the system's own ticks; "" where that cannot be told."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # no such process, or no Linux
        return ""


def _lives(process: int, start: str) -> bool:
    if start or Path("/proc/self/stat").exists():
        return start != "" and _start_of(process) == start
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def pinned(identity: Identity) -> Found:
    """What the first process of the job on this host found for such a device.

    A pin counts as long as the process lives that made it, so the next job of the same launcher
    looks for itself.
    """
    own = look(identity)
    if own.reason == SWITCHED_OFF:
        return own
    try:
        folder = cache_folder() / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        pin = folder / f"{_job_key(identity)}-{slug(identity)}.json"
        with lock.held(folder / "lock", time.monotonic() + _PATIENCE_S, lambda: None, _LOCK):
            _remove_old(folder)
            first = _read(pin) or _write(pin, own)
        record = parse(first["record"], first["source"]) if first["record"] else None
    except (XLNetFastError, OSError, ValueError, KeyError, TypeError) as error:
        if own.record is not None:  # otherwise nothing is lost by it
            warn_once(
                f"the processes of this job cannot agree on a record in the user's cache "
                f"({error}), so none counts: set XLNET_FAST_CACHE to a folder that they can write"
            )
        return Found(None, reason="no record that all processes of the job share")
    pinned_here = f" (pinned for this job in {pin})" if first["process"] != os.getpid() else ""
    reason = first["reason"] and first["reason"] + pinned_here
    return Found(record, first["source"] + (pinned_here if record is not None else ""), reason)


def _read(pin: Path) -> dict[str, Any] | None:
    """What is pinned, if it is whole and its process lives."""
    try:
        first: dict[str, Any] = json.loads(pin.read_text(encoding="utf-8"))
        return first if _lives(first["process"], first["start"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(pin: Path, own: Found) -> dict[str, Any]:
    first = {
        "process": os.getpid(),
        "start": _start_of(os.getpid()),
        "source": own.source,
        "reason": own.reason,
        "record": "" if own.record is None else own.record.to_json(),
    }
    handle, temporary = tempfile.mkstemp(suffix=".json", dir=pin.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(first, file)
    os.replace(temporary, pin)
    return first


def _remove_old(folder: Path) -> None:
    """Pins of jobs that ended long ago, and what a process that died left of one."""
    limit = time.time() - _KEPT_S
    for file in folder.glob("*.json"):  # not the lock, which another process may hold
        try:
            if file.stat().st_mtime < limit and _read(file) is None:
                file.unlink()
        except OSError:
            continue  # another user's
