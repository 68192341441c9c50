"""Reading files of ``torch.save`` without running what they name.

A pickle names classes and functions, and whoever unpickles it runs them. Here PyTorch's own reader
of tensors and plain values does it (``weights_only``). What a checkpoint keeps beside them, such as
its arguments or its vocabulary, is held by :class:`StandIn`, which does nothing.
"""

from __future__ import annotations

import json
import os
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError

NAMESPACE = "argparse.Namespace"
_ZIP = b"PK\x03\x04"
_PICKLES_BEFORE_STORAGES = 4  # of the format before zip: a number, a version, a machine, the object
_PLAIN = re.compile(
    r"torch\.(_utils\.\w+|\w*Storage|storage\.\w+|Size|device|Tensor|nn\.parameter\.Parameter|"
    r"_tensor\._rebuild_from_type_v2|bfloat16|u?int\d+|float\d+)"
    r"|collections\.(OrderedDict|Counter)|_codecs\.encode|builtins\.(set|bytearray|complex)"
)


class StandIn:
    """What a file says of an object whose class is neither looked for nor run."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        """Take what any constructor takes."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """What a constructor was given tells nothing without its code."""

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes."""
        parts = state if isinstance(state, tuple) else (state,)
        for part in parts:
            if isinstance(part, dict):
                self.__dict__.update({str(name): value for name, value in part.items()})


def only_arguments(name: str) -> bool:
    """Whether a class is that of parsed arguments, which holds values and has no code to miss."""
    return name == NAMESPACE


def check_name(path: Path) -> None:
    """Raise ArgumentError for a path that the system cannot look up: too long, or forbidden."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise ArgumentError(f"{str(path)[:100]!r} cannot be looked up: {reason}") from error


def load(path: Path, way_out: str, stands_in: Callable[[str], bool] = only_arguments) -> Any:
    """What a file of ``torch.save`` holds, on the CPU; tensors are read when they are used.

    Args:
        way_out: what would be right where the file holds other objects, for the message.
        stands_in: whether :class:`StandIn` may hold an object of this class.

    Raises:
        ArgumentError: there is no such file, it is damaged, or holds objects of other classes.
    """
    if path.is_dir():
        raise ArgumentError(f"{path} is a folder, expected the file of a checkpoint")
    if not path.is_file():
        raise ArgumentError(f"the file {path} does not exist")
    try:
        names = _names(path)
    except Exception as error:  # of the archive's and the pickle's parsers
        raise _damaged(path, error) from error
    refused = sorted(name for name in names if not stands_in(name))
    if refused:
        raise ArgumentError(
            f"{path} holds objects of {refused[0]}, whose code would have to run to read them, and "
            f"it is not run: {way_out}"
        )
    try:
        with torch.serialization.safe_globals([(StandIn, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except Exception as error:
        raise _damaged(path, error, f"; if it is whole, {way_out}" if names else "") from error


def _names(path: Path) -> set[str]:
    """Classes and functions that the file names, beside those of tensors and plain values."""
    if _is_zip(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    names = set()
    with path.open("rb") as file:
        for _ in range(_PICKLES_BEFORE_STORAGES):
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    module, _, name = str(argument).partition(" ")
                    module = IMPORT_MAPPING.get(module, module)  # of Python 2, which pickles speak
                    module, name = NAME_MAPPING.get((module, name), (module, name))
                    names.add(f"{module}.{name}")
    return {name for name in names if not _PLAIN.fullmatch(name)}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _damaged(path: Path, error: Exception, otherwise: str = "") -> ArgumentError:
    if isinstance(error, PermissionError):
        return ArgumentError(f"{path} cannot be read: {error.strerror}")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return ArgumentError(
        f"{path} cannot be read: it is no file of torch.save, or damaged or cut short "
        f"({told.rstrip('.')}){otherwise}"
    )


def fields_of(value: Any) -> dict[str, Any]:
    """The entries of a mapping or the attributes of an object that was stood in for, else none."""
    if isinstance(value, Mapping):
        return {str(name): entry for name, entry in value.items()}
    return dict(vars(value)) if isinstance(value, StandIn) else {}


def tensors_of(content: Any, what: str) -> dict[str, Tensor]:
    """A state dict by name, without the prefix that ``DataParallel`` adds.

    Raises:
        ArgumentError: it is none, or has tensors that are not strided or have no values; ``what``
            is how the message calls it.
    """
    if not isinstance(content, Mapping) or not content:
        raise ArgumentError(f"{what} is no state dict, expected names and tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ArgumentError(
                f"{what} is no state dict: {name!r} is {type(value).__name__}, expected a tensor"
            )
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            raise ArgumentError(
                f"{name} in {what} is a sparse tensor, a nested one or one without values, "
                "expected an ordinary one"
            )
    prefix = "module."
    if all(name.startswith(prefix) for name in content):
        return {name.removeprefix(prefix): value for name, value in content.items()}
    return dict(content)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        ArgumentError: there is no such file, or it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{path} is no valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ArgumentError(f"{path} holds {type(content).__name__}, expected names and values")
    return content
