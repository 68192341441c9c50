"""Is every file of a checkpoint there and whole? Headers and sizes tell, weights are not read."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from xlnet_fast.errors import ArgumentError

_NAME = re.compile(r"checkpoint-(\d+)")
_RANDOM_STATE = re.compile(r"rng_state(?:_(\d+))?\.pth")


def is_training_checkpoint(folder: Path) -> bool:
    """True for a name ``checkpoint-N``: a checkpoint of the Trainer, with an optimizer."""
    return _NAME.fullmatch(folder.name) is not None


def step_of(folder: Path) -> int:
    """The N of ``checkpoint-N``."""
    return int(folder.name.rpartition("-")[2])


def check_files(folder: Path, training: bool) -> None:
    """Check the model's files, and those of the optimizer and Trainer if ``training``.

    Raises:
        ArgumentError: one is missing, cut short or cannot be parsed; says which.
    """
    if _sharded(folder, "pytorch_model_fsdp"):
        for shards in _sharded(folder, "pytorch_model_fsdp"):
            _check_shards(shards)
    else:
        _json(folder / "config.json")
        _check_weights(folder)
    if training:
        _check_training_state(folder)


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        _check_safetensors(folder / "model.safetensors")
        return
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArgumentError(f"{index} is damaged: it names no weights")
    for name in sorted(set(weight_map.values())):
        _check_safetensors(folder / name)


def _check_training_state(folder: Path) -> None:
    state = _json(folder / "trainer_state.json")
    if not isinstance(state.get("global_step"), int):
        raise ArgumentError(f"{folder / 'trainer_state.json'} is damaged: it has no global_step")
    optimizers = _sharded(folder, "optimizer")
    for shards in optimizers:
        _check_shards(shards)
    if not optimizers:  # FSDP gathers it under the other name
        gathered = folder / "optimizer.bin"
        _check_zip(gathered if gathered.is_file() else folder / "optimizer.pt")
    _check_zip(folder / "scheduler.pt")
    for name in ("scaler.pt", "pytorch_model_fsdp.bin"):
        if (folder / name).exists():
            _check_zip(folder / name)
    _check_random_states(folder)


def _check_random_states(folder: Path) -> None:
    """One file of one process, or one for each of several."""
    found = {path.name for path in folder.iterdir() if _RANDOM_STATE.fullmatch(path.name)}
    ranks = [int(match[1]) for match in map(_RANDOM_STATE.fullmatch, found) if match and match[1]]
    expected = {f"rng_state_{rank}.pth" for rank in range(max(ranks) + 1)} if ranks else set()
    for name in sorted(expected or {"rng_state.pth"}):
        _check_zip(folder / name)


def _sharded(folder: Path, prefix: str) -> list[Path]:
    """The folders ``prefix_0``, ... that torch.distributed.checkpoint writes."""
    return sorted(path for path in folder.glob(f"{prefix}_*") if path.is_dir())


def _check_shards(folder: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    _require(folder / ".metadata")
    try:
        metadata = FileSystemReader(folder).read_metadata()
        pieces = [metadata.storage_data[key] for key in metadata.storage_data]
    except Exception as error:  # a pickle that was cut short raises almost anything
        raise ArgumentError(f"{folder / '.metadata'} is damaged: {_line(error)}") from error
    for piece in pieces:
        path = folder / piece.relative_path
        _require(path)
        if path.stat().st_size < piece.offset + piece.length:
            raise ArgumentError(
                f"{path} is cut short: it has {path.stat().st_size} bytes, "
                f"expected at least {piece.offset + piece.length}"
            )


def _check_safetensors(path: Path) -> None:
    """Opening compares the header's offsets with the size of the file."""
    _require(path)
    try:
        with safe_open(str(path), framework="numpy") as file:
            empty = not file.keys()
    except (SafetensorError, OSError) as error:
        raise ArgumentError(f"{path} is damaged or cut short: {_line(error)}") from error
    if empty:
        raise ArgumentError(f"{path} is damaged: it holds no weights")


def _check_zip(path: Path) -> None:
    """A file of torch.save; its table of contents is at the end, so a cut one has none."""
    _require(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ArgumentError(f"{path} is damaged or cut short: {_line(error)}") from error
    if not any(name.endswith("data.pkl") for name in names):
        raise ArgumentError(f"{path} is damaged: it is no file of torch.save")


def _json(path: Path) -> dict[str, Any]:
    _require(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} is damaged or cut short: {_line(error)}") from error
    if not isinstance(content, dict):
        raise ArgumentError(f"{path} is damaged: it holds no JSON object")
    return content


def _require(path: Path) -> None:
    if not path.is_file():
        raise ArgumentError(f"{path.parent} is incomplete: it lacks {path.name}")


def _line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
