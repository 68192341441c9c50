"""One record for all processes of a distributed job on a host.

The first process that asks pins what it found, "none" included, for all of them, so that they run
the same backends even if a record is renewed meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from xlnet_fast.errors import ArgumentError
from xlnet_fast.ops.qualification.files import Found, cache_folder, look, slug
from xlnet_fast.ops.qualification.record import Identity, parse
from xlnet_fast.ops.qualification.telling import warn_once

_KEPT_S = 7 * 86400.0


def is_job() -> bool:
    """Whether this process is one of several of a distributed job."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size() > 1
    return os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def _job_key() -> str:
    """The same for the processes of a job on this host, other for any other job.

    They are children of one launcher, told from a later process of the same number by its start.
    """
    parent = os.getppid()
    try:
        stat = Path(f"/proc/{parent}/stat").read_text(encoding="utf-8", errors="replace")
        started = stat.rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # no Linux
        started = ""
    names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
    parts = [str(parent), started, *(os.environ.get(name, "") for name in names)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def pinned(identity: Identity) -> Found:
    """What the first process of the job on this host found for such a device."""
    own = look(identity)
    try:
        folder = cache_folder() / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old(folder)
        pin = folder / f"{_job_key()}-{slug(identity)}.json"
        text = "" if own.record is None else own.record.to_json()
        _create_once(pin, json.dumps({"source": own.source, "reason": own.reason, "record": text}))
        first = json.loads(pin.read_text(encoding="utf-8"))
        record = parse(first["record"], first["source"]) if first["record"] else None
    except (ArgumentError, OSError, ValueError, KeyError, TypeError) as error:
        warn_once(
            f"the processes of this job cannot agree on a record in the user's cache ({error}), so "
            f"none counts: set XLNET_FAST_CACHE to a folder that they can write"
        )
        return Found(None, reason="no record that all processes of the job share")
    return Found(record, first["source"], first["reason"])


def _create_once(path: Path, text: str) -> None:
    """Make a whole file unless it is there: a link to a finished one is all or nothing."""
    if path.exists():
        return
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _remove_old(folder: Path) -> None:
    limit = time.time() - _KEPT_S
    for file in folder.iterdir():
        try:
            if file.stat().st_mtime < limit:
                file.unlink()
        except OSError:
            continue  # another process removed it
