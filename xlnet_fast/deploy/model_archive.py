"""``model.tar.gz``: the files of a checkpoint that a service needs, packed the same each time."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from xlnet_fast.errors import ArgumentError, XLNetFastError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZERS = ("spiece.model", "tokenizer.json")
# All else in a folder is left out: optimizers, logs, and pickles, which would run what is in them.
_PACKED = (".json", ".safetensors", ".model", ".txt", ".jinja")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")
_EPOCH = 946684800  # 2000-01-01, of every file: archives of the same files are the same bytes


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


@dataclass(frozen=True)
class ModelFolder:
    """A checkpoint that can be packed.

    Attributes:
        folder: of the checkpoint. files: relative names, sorted.
        left_out: names of what is not packed.
        architecture: the model's class. size_bytes: of the files together.
        digest: SHA-256 of the archive before its compression, in hex.
    """

    folder: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    architecture: str
    size_bytes: int
    digest: str


def model_folder(name: str) -> ModelFolder:
    """What is in a folder, once it is known that a service can load it.

    Args:
        name: folder of a checkpoint, or of a run that has ended.

    Raises:
        ArgumentError: it is no checkpoint of XLNet in safetensors with a tokenizer, files of it
            are missing or cut short, or a link leads out of it.
    """
    folder = Path(name).expanduser()
    if not (folder / "config.json").is_file() and (folder / "model" / "config.json").is_file():
        folder = folder / "model"
    if not folder.is_dir():
        raise ArgumentError(
            f"the model's folder {name} does not exist; expected a folder, not a name of the Hub"
        )
    files, left_out = _sorted_out(folder)
    architecture = _architecture(folder)
    _check_weights(folder, files)
    if not any(one in files for one in TOKENIZERS):
        raise ArgumentError(
            f"{folder} has no tokenizer, expected {' or '.join(TOKENIZERS)} beside the weights"
        )
    size = sum((folder / file).stat().st_size for file in files)
    digest = hashlib.sha256()
    _write_tar(folder, files, _Hashing(digest))
    return ModelFolder(
        folder, tuple(files), tuple(left_out), architecture, size, digest.hexdigest()
    )


def _sorted_out(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files to pack, and of those that are left out; of the folder alone."""
    packed, left_out, root = [], [], Path(os.path.realpath(folder))
    for path in sorted(folder.iterdir()):
        if path.is_dir() or path.name.startswith(".") or path.suffix not in _PACKED:
            left_out.append(path.name + ("/" if path.is_dir() else ""))
            continue
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(root):
            raise ArgumentError(
                f"{path} is a link out of the folder, to {target}: copy what it leads to, for "
                "example by cp -rL"
            )
        if not target.is_file():
            raise ArgumentError(f"{path} is no regular file")
        packed.append(path.name)
    return packed, left_out


def _architecture(folder: Path) -> str:
    config = _json(folder / "config.json")
    if config.get("model_type") != "xlnet":
        raise ArgumentError(f"{folder} is a {config.get('model_type')} model, expected an XLNet")
    heads = config.get("architectures")
    if not isinstance(heads, list) or not heads or not isinstance(heads[0], str):
        raise ArgumentError(
            f"{folder / 'config.json'} names no architectures, so the service cannot tell what "
            "the model answers"
        )
    return heads[0]


def _json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ArgumentError(f"{path} cannot be read: {why}") from error
    if not isinstance(content, dict):
        raise ArgumentError(f"{path} holds no JSON object")
    return content


def _check_weights(folder: Path, files: list[str]) -> None:
    """That all weights are there, each file to its end."""
    if WEIGHTS in files:
        _tensors(folder / WEIGHTS)
        return
    if INDEX not in files:
        pickles = [path.name for path in folder.iterdir() if path.suffix in _PICKLES]
        also = f"; {', '.join(pickles)} would run what is in it, so save it anew" if pickles else ""
        raise ArgumentError(f"{folder} has no {WEIGHTS}{also}")
    shards = _json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ArgumentError(f"{folder / INDEX} names no weights")
    wanted: dict[str, set[str]] = {}
    for weight, shard in shards.items():
        wanted.setdefault(str(shard), set()).add(weight)
    for shard, names in sorted(wanted.items()):
        if shard not in files:
            raise ArgumentError(f"{folder} lacks {shard}, which {INDEX} names")
        missing = sorted(names - _tensors(folder / shard))
        if missing:
            raise ArgumentError(f"{folder / shard} lacks {missing[0]}, which {INDEX} places there")


def _tensors(path: Path) -> set[str]:
    """Names of the weights of a file; its header must agree with its length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ArgumentError(f"{path} is damaged or cut short: {error}") from error
    if not names:
        raise ArgumentError(f"{path} holds no weights")
    return names


class _Hashing:
    """Passes on what is written, and knows its sum."""

    def __init__(self, digest: hashlib._Hash, sink: _Sink | None = None) -> None:
        self.digest, self._sink = digest, sink

    def write(self, data: bytes) -> int:
        """All of it."""
        self.digest.update(data)
        if self._sink is not None:
            self._sink.write(data)
        return len(data)


def _write_tar(folder: Path, files: tuple[str, ...] | list[str], sink: _Sink) -> None:
    """The archive, without anything that differs between machines and days."""
    # Streamed, in blocks of tarfile's: the weights are never in memory as a whole.
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
        for name in files:
            with open(folder / name, "rb") as content:
                entry = tarfile.TarInfo(name)
                entry.size = os.fstat(content.fileno()).st_size
                entry.mode, entry.mtime = 0o644, _EPOCH
                archive.addfile(entry, content)


@contextlib.contextmanager
def _as_sentence(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise XLNetFastError(
            f"the archive {path} cannot be written: {error.strerror or error}"
        ) from error


def pack(model: ModelFolder, path: Path) -> str:
    """Write ``model.tar.gz``.

    Returns:
        SHA-256 of the file, in hex. The same files give the same bytes with the same zlib.

    Raises:
        XLNetFastError: it cannot be written, or the folder has changed since it was looked at.
    """
    inside, outside = hashlib.sha256(), hashlib.sha256()
    with _as_sentence(path), open(path, "wb") as file:
        _compress(model, _Hashing(outside, file), inside)
    if inside.hexdigest() != model.digest:
        raise XLNetFastError(f"{model.folder} has changed while it was packed: try again")
    return outside.hexdigest()


def _compress(model: ModelFolder, file: _Hashing, inside: hashlib._Hash) -> None:
    # Weights hardly shrink: the quickest level is as good as any.
    target: BinaryIO = file  # type: ignore[assignment]  # gzip calls write alone
    with gzip.GzipFile("", "wb", compresslevel=1, fileobj=target, mtime=0) as packed:
        _write_tar(model.folder, model.files, _Hashing(inside, packed))
