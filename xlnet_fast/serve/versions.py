"""Versions of models in folders, and which of them are whole.

    MODELS_DIR/NAME/VERSION/    versions are numbers, the highest is the newest
    MODELS_DIR/NAME/            a checkpoint, or a run's folder: version 1

A name is looked for in what was found; no path is made of a name that a request gave.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.run import checkpoint_of
from xlnet_fast.serve.options import NAME, VERSION

FIRST = "1"
"""The version of a folder without versions."""
SETTLED_S = 1.0
"""A folder in which nothing has changed for so long is read."""
GIVEN_UP_S = 30.0
"""A folder that is incomplete, and in which nothing has changed for so long, is damaged."""
INDEX = "model.safetensors.index.json"
_HEADER_BYTES = 100_000_000  # the format's own limit
_log = logging.getLogger(__name__)

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Found:
    """A version that lies in a folder.

    Attributes:
        name, version: of the model.
        folder: of its checkpoint. fingerprint: of the files, another one when one has changed.
        unfinished: why it cannot be read yet, else "". damaged: why it never will, else "".
    """

    name: str
    version: str
    folder: Path
    fingerprint: Fingerprint
    unfinished: str = ""
    damaged: str = ""


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint or a run's."""
    return (Path(checkpoint_of(str(folder))) / "config.json").is_file()


def name_of(model: str) -> str:
    """What a model is called by default: as its folder, or the last part of its Hub id.

    Raises:
        ArgumentError: the folder's name is none for a model.
    """
    folder = Path(model).expanduser()
    name = folder.resolve().name if folder.is_dir() else model.rpartition("/")[2]
    if not NAME.fullmatch(name):
        raise ArgumentError(f"{name!r} is no name for a model: give one with --name")
    return name


def find(root: Path, now: float | None = None) -> dict[str, list[Found]]:
    """The versions of every model below a folder, the newest first.

    Args:
        now: in seconds of ``time.time``.

    Raises:
        OSError: the folder cannot be read.
    """
    now = time.time() if now is None else now
    models = {}
    for folder in _folders(root):
        if not NAME.fullmatch(folder.name):
            _say_once(f"{folder} is not served: its name is none for a model")
            continue
        found = found_versions(folder.name, folder, now)
        if found:
            models[folder.name] = found
    return models


def found_versions(name: str, folder: Path, now: float) -> list[Found]:
    """The versions of one model, the newest first; none is left out that cannot be read."""
    numbered = [one for one in _folders(folder) if VERSION.fullmatch(one.name)]
    if numbered:
        numbered.sort(key=lambda one: int(one.name), reverse=True)
        return [found_version(name, one.name, one, now) for one in numbered]
    return [found_version(name, FIRST, folder, now)] if is_checkpoint(folder) else []


def found_version(name: str, version: str, folder: Path, now: float) -> Found:
    """One version, and whether it is whole."""
    checkpoint = Path(checkpoint_of(str(folder)))
    try:
        files = [(path, path.stat()) for path in sorted(checkpoint.iterdir()) if path.is_file()]
        lacking = incomplete(checkpoint)
    except OSError as error:  # a file has gone meanwhile
        files, lacking = [], f"{error.filename}: {error.strerror}"
    fingerprint = tuple((path.name, one.st_size, one.st_mtime_ns) for path, one in files)
    # The change time: a copy may bring the times of its source along, but not this one.
    quiet_s = now - max((one.st_ctime for _, one in files), default=now)
    unfinished = damaged = ""
    if lacking and quiet_s >= GIVEN_UP_S:
        damaged = f"the folder is incomplete: {lacking}"
    elif lacking or 0 <= quiet_s < SETTLED_S:
        unfinished = f"the folder is being written: {lacking or 'it has just changed'}"
    return Found(
        name=name, version=version, folder=checkpoint, fingerprint=fingerprint,
        unfinished=unfinished, damaged=damaged,
    )  # fmt: skip


def incomplete(folder: Path) -> str:
    """What a checkpoint lacks: a file, or the end of one; "" if nothing does.

    Raises:
        OSError: a file cannot be read.
    """
    if not (folder / "config.json").is_file():
        return "there is no config.json"
    names = [path.name for path in folder.glob("*.safetensors")]
    if (folder / INDEX).is_file():
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names = sorted(set(index["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{INDEX} cannot be read"
    for name in names:
        path = folder / name
        if not path.is_file():
            return f"there is no {name}"
        there, wanted = path.stat().st_size, safetensors_bytes(path)
        if there < wanted:
            return f"{name} has {there:,} of {wanted:,} bytes"
    return "" if names or any(folder.glob("*.bin")) else "there are no weights"


def safetensors_bytes(path: Path) -> int:
    """How long a file of safetensors will be, by its header; more than it is, where it is cut.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return 8
        (length,) = struct.unpack("<Q", start)
        if length > _HEADER_BYTES:
            return 8  # no such file, which is told when it is loaded
        header = file.read(length)
    if len(header) < length:
        return 8 + length
    try:
        tensors = json.loads(header)
        ends = [one["data_offsets"][1] for name, one in tensors.items() if name != "__metadata__"]
        return 8 + length + max(ends, default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return 8


def _folders(folder: Path) -> Iterator[Path]:
    """Folders in a folder; hidden ones are for what is being moved."""
    with os.scandir(folder) as entries:
        names = sorted(one.name for one in entries if one.is_dir())
    return (folder / name for name in names if not name.startswith("."))


_said: set[str] = set()


def _say_once(message: str) -> None:
    if message not in _said:
        _said.add(message)
        _log.warning(message)
