"""The folder of a run: never mixed with another run's, its files written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError, XLNetFastError


def prepare_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make the folder, or empty it if ``overwrite``; an earlier run's stays for ``resume``.

    Raises:
        ArgumentError: it is a file, cannot be made, or is not empty without either.
    """
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"the output {folder} is a file, expected a folder")
    try:
        if overwrite and folder.is_dir():
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not resume and any(folder.iterdir()):
        raise ArgumentError(
            f"the folder {folder} is not empty: --resume goes on with the run in it, --overwrite "
            "deletes it"
        )
    if not os.access(folder, os.W_OK):
        raise ArgumentError(f"the folder {folder} cannot be written to")


def check_same_run(record: Path, now: Mapping[str, Any]) -> None:
    """Compare what decides a run's results with the record of the run that is to go on.

    Nothing is compared where the folder is empty: the run begins.

    Raises:
        ArgumentError: the record is missing or damaged, or differs; says in what.
    """
    if not any(record.parent.iterdir()):
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"{record.parent} holds no run of this command that could be resumed: {record.name} is "
            "missing or damaged"
        ) from error
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ArgumentError(
            f"the run in {record.parent} cannot go on differently: {'; '.join(changed)}; give its "
            "own options, or start anew with --overwrite"
        )


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename: a kill leaves the old file or the new one.

    Raises:
        XLNetFastError: it cannot be written, such as on a full disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise XLNetFastError(f"{path} could not be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON as :func:`write_text` does, and raise as it does."""
    write_text(path, json.dumps(content, indent=1) + "\n")
