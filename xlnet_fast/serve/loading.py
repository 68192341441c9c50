"""From a folder to a model that has proved itself, in the loading thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xlnet_fast.checkpoint import ready_to_fetch
from xlnet_fast.errors import ArgumentError
from xlnet_fast.generate.run import checked_device, checkpoint_of
from xlnet_fast.predict.pieces import Piece
from xlnet_fast.predict.predictor import Predictor
from xlnet_fast.predict.tasks.base import Reading
from xlnet_fast.serve import canary
from xlnet_fast.serve.options import ServeOptions
from xlnet_fast.serve.room import check_room
from xlnet_fast.serve.versions import INDEX

WEIGHTS = "model.safetensors"
ADAPTER = "adapter_config.json"
_SAFE = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jsonl")


@dataclass(frozen=True)
class Loaded:
    """A model that may be asked.

    Attributes:
        predictor: the model. run: computes a batch, as ``Predictor.run``. check: raises if the
            canaries fail.
    """

    predictor: Predictor
    run: Callable[[Sequence[Piece], Callable[[], bool]], list[Any]]
    check: Callable[[], None]


def load(source: str, options: ServeOptions, like: Predictor | None = None) -> Loaded:
    """Load a model, and let it answer its canaries, which warms it up too.

    Args:
        source: folder or Hub id.
        like: the model that it will take the place of.

    Raises:
        ArgumentError: it cannot be read, or is not what may be loaded.
        NoRoom: there is too little memory for it.
        XLNetFastError: it does not answer as it should.
    """
    folder = folder_of(source, options.allow_pickle)
    check_safety(folder, options.allow_pickle)
    device = checked_device(options.device)
    check_room(folder, device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    predictor = Predictor.load(
        str(folder),
        task=options.task,
        tokenizer=options.tokenizer,
        dtype=options.dtype,
        device=options.device,
        backend=options.backend,
        reading=Reading(max_length=options.max_length, long=options.long, stride=options.stride),
    )
    _own(predictor.task.model)
    if like is not None and predictor.task.name != like.task.name:
        raise ArgumentError(
            f"it is of {predictor.task.name}, and the version in use of {like.task.name}: requests "
            "would no longer be understood; give it another name"
        )
    place = Path(source) if (Path(source) / canary.FILE).is_file() else folder
    canaries = canary.canaries_of(place, predictor)
    canary.check(predictor, canaries)
    return Loaded(predictor, predictor.run, lambda: canary.check(predictor, canaries))


def _own(model: torch.nn.Module) -> None:
    """Copy weights that are a file's pages: who writes to that file would change or kill us."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def folder_of(source: str, allow_pickle: bool) -> Path:
    """The folder of a checkpoint; of a Hub id that of its files in the cache, fetched if need be.

    Raises:
        ArgumentError: there is none, or it cannot be fetched.
    """
    folder = Path(checkpoint_of(source)).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ArgumentError(f"the checkpoint folder {source} does not exist")
    from huggingface_hub import snapshot_download

    offline = "local_files_only" in ready_to_fetch(source, ("config.json",))
    patterns = [*_SAFE, "*.bin"] if allow_pickle else list(_SAFE)
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=offline))
    except Exception as error:  # of the Hub's client
        raise ArgumentError(f"{source} cannot be fetched from the Hub: {error}") from error


def check_safety(folder: Path, allow_pickle: bool) -> None:
    """Refuse what could run code of whoever wrote it.

    Raises:
        ArgumentError: the weights are no safetensors, or those of an adapter.
    """
    if (folder / ADAPTER).is_file():
        raise ArgumentError(
            f"{folder} is an adapter, which would load the model that it names: merge it with "
            "that one and save the whole"
        )
    if not allow_pickle and not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise ArgumentError(
            f"{folder} has no {WEIGHTS}: other weights are pickles, which can run code, and are "
            "loaded with --allow-pickle alone"
        )
