"""The folder of a run: never mixed with another run's, its files written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xlnet_fast import files
from xlnet_fast.errors import ArgumentError, XLNetFastError

_LENGTHS = ("steps", "epochs")
_OF_A_NEW_MODEL = (
    "d_model", "n_layer", "n_head", "d_inner", "d_head", "d_embed", "cutoffs", "div_val",
    "from_scratch",
)  # fmt: skip
_SAME_OR_ANEW = "give its own options, or start anew with --overwrite"


def check_folder(folder: Path, resume: bool) -> None:
    """Check that a run can have the folder, before its data are read; nothing is made.

    Args:
        resume: whether what is in the folder may be there.

    Raises:
        ArgumentError: it is a file, is not empty, or could not be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"the output {folder} is a file, expected a folder")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise ArgumentError(
            f"the folder {folder} is not empty: --resume goes on with the run in it, --overwrite "
            "deletes it"
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ArgumentError(f"cannot make the folder {folder}: {there} is a file")
    if not os.access(there, os.W_OK):
        raise ArgumentError(f"the folder {there} cannot be written to")


def prepare_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Make the folder, or empty it if ``overwrite``; an earlier run's stays for ``resume``.

    Raises:
        ArgumentError: as :func:`check_folder`.
    """
    check_folder(folder, resume or overwrite)
    try:
        if overwrite and folder.is_dir():
            for entry in folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot make the folder {folder}: {error.strerror}") from error


def check_same_run(
    record: Path, now: Mapping[str, Any], unsaid: Mapping[str, Any] | None = None
) -> None:
    """Compare what decides a run's results with the record of the run that is to go on.

    Nothing is compared where there is no folder, or an empty one: the run begins. It may become
    longer where its learning rate does not depend on its length, so that every step is as if it had
    been so long from the beginning.

    Args:
        record: the file of the run in the folder. now: what it would hold now.
        unsaid: what holds of a run whose record was written before there was such an option.

    Raises:
        ArgumentError: the record is missing or damaged, or differs; says in what, and how to train
            on if the run shall be longer.
    """
    if not record.parent.is_dir() or not any(record.parent.iterdir()):
        return
    try:
        before = {**(unsaid or {}), **json.loads(record.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError) as error:
        raise ArgumentError(
            f"{record.parent} holds no run of this command that could be resumed: {record.name} is "
            "missing or damaged"
        ) from error
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    only_longer = all(
        name in _LENGTHS and _grew(before.get(name), now.get(name)) for name in changed
    )
    if only_longer and now["schedule"] == "constant_with_warmup" and now["warmup"] >= 1:
        return
    if changed:
        told = "; ".join(
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}" for name in changed
        )
        way = _way_on(record.parent, before, now, changed) if only_longer else _SAME_OR_ANEW
        raise ArgumentError(f"the run in {record.parent} cannot go on differently: {told}; {way}")


def _grew(before: Any, now: Any) -> bool:
    return before is not None and now is not None and now > before


def _way_on(
    run: Path, before: Mapping[str, Any], now: Mapping[str, Any], changed: Sequence[str]
) -> str:
    """What to type to train on after a run whose learning rate was planned for its length."""
    added = [f"--{name} {round(now[name] - before[name], 6)}" for name in changed]
    without = ["resume", *(name for name in _OF_A_NEW_MODEL if before.get(name))]
    return (
        "its learning rate was planned for that length. To train on, "
        + ("" if (run / "model").is_dir() else "let it end with its own options, then ")
        + f"start a new run from its model: --model {run / 'model'} --output {run}-longer "
        + " ".join(added)
        + ", the other options as they were, without "
        + " ".join(f"--{name.replace('_', '-')}" for name in without)
    )


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """As :func:`xlnet_fast.files.written_whole`.

    Raises:
        XLNetFastError: it cannot be written, such as on a full disk.
    """
    try:
        with files.written_whole(path) as temporary:
            yield temporary
    except OSError as error:
        raise XLNetFastError(f"{path} could not be written: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 as :func:`written_whole` does, and raise as it does."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON as :func:`written_whole` does, and raise as it does."""
    write_text(path, json.dumps(content, indent=1) + "\n")
