"""The folder of a run: never mixed with another run's, its files written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name, then rename.

    Raises:
        XLNetFastError: it cannot be written.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise XLNetFastError(f"{path} cannot be written: {error.strerror}") from error
