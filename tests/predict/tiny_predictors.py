"""Tiny random checkpoints of every class, made once a process, and what reads and runs them."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_finetuning import checkpoint
from transformers import XLNetConfig

from xlnet_fast.predict import Predictor
from xlnet_fast.predict.tasks.base import Reading
from xlnet_fast.train.shared.tokenizers import load_tokenizer

TEXT = (
    "The value of a class is an object, as  this function returns a string with the value. "
    "It raises an error if the argument is not a module or has no name, which may be given."
)
LONG = f"{TEXT} Is it {TEXT}"
TAGS = {0: "O", 1: "B-NAME", 2: "I-NAME", 3: "B-PLACE", 4: "I-PLACE"}
CLASSES = {0: "bad", 1: "good", 2: "none"}


@functools.cache
def home() -> Path:
    """A folder with a language model, its weights so wide that results differ clearly."""
    folder = Path(tempfile.mkdtemp(prefix="xlnet_fast_predict_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    checkpoint(folder / "XLNetLMHeadModel", initializer_range=0.4)
    return folder


@functools.cache
def folder_of(architecture: str, **settings: Any) -> Path:
    """A checkpoint of a class, with the tokenizer of ``home``; ``settings``: of its config."""
    trunk = home() / "XLNetLMHeadModel"
    if architecture == "XLNetLMHeadModel" and not settings:
        return trunk
    folder = Path(tempfile.mkdtemp(dir=home()))
    load_tokenizer(str(trunk)).save_pretrained(folder)
    torch.manual_seed(1)
    names = {name: dict(labels) for name, labels in settings.items() if name == "id2label"}
    config = XLNetConfig.from_pretrained(trunk, **{**settings, **names})
    getattr(transformers, architecture)(config).save_pretrained(folder)
    return folder


class Labels(tuple[tuple[int, str], ...]):
    """Labels of a config, hashable."""


def labelled(architecture: str, labels: dict[int, str], **settings: Any) -> Path:
    """``folder_of`` a model with these labels."""
    return folder_of(architecture, id2label=Labels(labels.items()), **settings)


def predictor(folder: Path, *, task: str | None = None, **reading: Any) -> Predictor:
    """At most 48 tokens, windows share 8, unless told otherwise."""
    settings = {"max_length": 48, "stride": 8, **reading}
    return Predictor.load(str(folder), task=task, reading=Reading(**settings))


def plain(folder: Path) -> Any:
    """Hugging Face's own model."""
    architecture = XLNetConfig.from_pretrained(folder).architectures[0]
    return getattr(transformers, architecture).from_pretrained(folder).eval()


def inputs_of(piece: Any) -> dict[str, torch.Tensor]:
    """Of one piece, as the tokenizer would give them: nothing padded."""
    ids, segments = torch.tensor([piece.input_ids]), torch.tensor([piece.token_type_ids])
    return {
        "input_ids": ids, "token_type_ids": segments, "attention_mask": torch.ones_like(ids)
    }  # fmt: skip


def one_by_one(predictor: Predictor, records: Sequence[Any], **parameters: Any) -> list[Any]:
    """The answers of records that are read alone, and so are their pieces."""
    return [predictor(record, token_budget=1, **parameters) for record in records]


def numbers(value: Any) -> Iterator[float]:
    """All of an answer, in order."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from numbers(value[key])
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from numbers(one)
    elif isinstance(value, (int, float)):
        yield float(value)


def words(value: Any) -> Any:
    """An answer without its floats."""
    if isinstance(value, dict):
        return {key: words(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [words(one) for one in value]
    return None if isinstance(value, float) else value
