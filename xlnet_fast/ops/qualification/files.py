"""Where records lie (the file that is named, the cache, the package), and which one counts."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.builder import recipe
from xlnet_fast.errors import ArgumentError
from xlnet_fast.ops.qualification.record import Identity, Record, read
from xlnet_fast.ops.qualification.telling import warn_once

FILE_VARIABLE = "XLNET_FAST_QUALIFICATION"
"""Environment variable: a record's file, which then counts in place of those in the cache; "none":
no record counts."""
SWITCHED_OFF = f"{FILE_VARIABLE}=none switches records off"


@dataclass(frozen=True)
class Found:
    """The record that counts for a device, or why there is none.

    ``source``: where it lies. ``reason``: one sentence without a subject, such as "no record ...".
    """

    record: Record | None
    source: str = ""
    reason: str = ""


def may_have(device: str) -> bool:
    """Whether a record of such a device may lie somewhere, told without knowing the device."""
    if os.environ.get(FILE_VARIABLE):
        return True
    try:
        cached = any(cache_folder().glob(f"{device}-*.json"))
    except (ArgumentError, OSError):
        cached = False
    return cached or any(_shipped_files())


def look(identity: Identity) -> Found:
    named = os.environ.get(FILE_VARIABLE)
    if named == "none":
        return Found(None, reason=SWITCHED_OFF)
    if named:
        found = _examine(Path(os.path.expanduser(named)), identity)
        if found.record is None:
            warn_once(f"{FILE_VARIABLE}: {found.reason}; nothing counts as proved")
        return found
    refused = None
    for file in _cached_files(identity):
        found = _examine(file, identity)
        if found.record is not None:
            return found
        refused = refused or found
    for file in _shipped_files():
        found = _examine(file, identity, shipped=True)
        if found.record is not None:
            return found
    if refused is not None:
        return refused
    return Found(None, reason=f"no record of {identity.name}")


def _cached_files(identity: Identity) -> list[Path]:
    """Records of this kind of device, that of the present libraries first, then the newest."""
    try:
        own = cache_file(identity)
        files = {file: file.stat().st_mtime for file in own.parent.glob(f"{slug(identity)}-*.json")}
    except (ArgumentError, OSError):
        return []
    return sorted(files, key=lambda file: (file != own, -files[file]))


def _shipped_files() -> Iterator[Path]:
    for root in (recipe.PACKAGE, recipe.PACKAGE.parent):
        yield from sorted((root / "benchmarks" / "results" / "qualification").glob("*.json"))


def _examine(file: Path, identity: Identity, shipped: bool = False) -> Found:
    """The record in a file, if it holds for an identity."""
    try:
        record = read(file)
    except ArgumentError as error:
        return Found(None, str(file), str(error))
    differs = record.identity.difference(identity)
    if differs is None:
        return Found(record, str(file))
    if shipped and (reduced := _as_shipped(record, identity)) is not None:
        return Found(reduced, str(file))
    return Found(None, str(file), f"the record {file} is stale: {differs}")


def _as_shipped(record: Record, identity: Identity) -> Record | None:
    """What a record from another machine says here: of Triton's kernels, by GPU, Triton and source.

    The compiled kernels are another file on every machine, so nothing is said of them.
    """
    deciding = ("device", "name", "capability", "multiprocessors", "triton", "kernels")
    if any(getattr(record.identity, name) != getattr(identity, name) for name in deciding):
        return None
    rows = tuple(row for row in record.rows if row.backend in ("triton", "sdpa"))
    return Record(record.identity, rows, record.created, record.seconds, record.full, record.tiles)


def cache_folder() -> Path:
    """The folder of this user's records.

    Raises:
        ArgumentError: the user has no home.
    """
    root = recipe.cache_root()
    if root is None:
        raise ArgumentError(
            "this user has no home, so there is no cache for a record: set XLNET_FAST_CACHE to a "
            "folder, or give --out FILE"
        )
    return root / "qualification"


def cache_file(identity: Identity) -> Path:
    """Where the record of a device lies in the user's cache, one for each set of libraries.

    Raises:
        ArgumentError: the user has no home.
    """
    libraries = json.dumps([identity.torch, identity.cuda, identity.triton])
    suffix = hashlib.sha256(libraries.encode()).hexdigest()[:8]
    return cache_folder() / f"{slug(identity)}-{suffix}.json"


def slug(identity: Identity) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", identity.name.lower()).strip("-")
    return f"{identity.device}-{name}"


def shipped() -> list[Record]:
    """The records that ship with the package, of whatever device; one that is damaged raises."""
    return [read(file) for file in _shipped_files()]
