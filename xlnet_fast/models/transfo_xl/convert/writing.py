"""The folder that a conversion leaves: weights, config and vocabulary, all of it or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.utils import logging

from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.files import folder_written_whole
from xlnet_fast.models.transfo_xl.configuration import TransfoXLConfig
from xlnet_fast.models.transfo_xl.convert.found import BARE, CLASSIFIER, SCORE, Found
from xlnet_fast.models.transfo_xl.convert.shapes import BODY
from xlnet_fast.models.transfo_xl.heads import (
    TransfoXLForSequenceClassification,
    TransfoXLLMHeadModel,
)
from xlnet_fast.models.transfo_xl.modeling import TransfoXLModel
from xlnet_fast.models.transfo_xl.tokenization import TransfoXLTokenizer

CONFIG = "config.json"
VOCABULARY = "vocab.json"
END = "<eos>"
UNKNOWN = ("<unk>", "<UNK>")
_CLASSES: dict[str, Any] = {BARE: TransfoXLModel, CLASSIFIER: TransfoXLForSequenceClassification}


def check_output(source: Path, output: Path, overwrite: bool) -> None:
    """Before minutes of reading: may this folder be written?

    Raises:
        ArgumentError: it is a file, is not empty, is what is read, or could not be written to.
    """
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"the output {output} is a file, expected the name of a folder")
    there = next(path for path in output.absolute().parents if path.exists())
    if not there.is_dir():
        raise ArgumentError(f"cannot make the folder {output}: {there} is a file")
    if not os.access(there, os.W_OK):
        raise ArgumentError(f"the folder {there} cannot be written to")
    inside, outside = output.resolve(), source.resolve()
    if inside == outside or inside in outside.parents:
        raise ArgumentError(
            f"the output {output} is or holds what is to be converted: name another folder"
        )
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not (output / CONFIG).is_file():
        raise ArgumentError(
            f"the folder {output} holds other things than a checkpoint: name a new one"
        )
    if not overwrite:
        raise ArgumentError(f"{output} holds a checkpoint: add --overwrite to replace it")


def write(found: Found, output: Path, tokenizer: Path | None) -> None:
    """Write ``model.safetensors``, ``config.json`` and, if there are words, the tokenizer's files.

    Args:
        tokenizer: folder of a tokenizer that is to be written as it is, or None.

    Raises:
        ArgumentError: the vocabulary is another model's.
        XLNetFastError: the folder could not be written; what was there before is there still.
    """
    config = dict(found.config)
    if found.symbols is not None:
        _check_size(len(found.symbols), config["vocab_size"], tokenizer is not None)
        words = {word: number for number, word in enumerate(found.symbols)}
        config.setdefault("eos_token_id", words.get(END))
    config.setdefault("eos_token_id", None)
    model = _model(found, TransfoXLConfig(**config))
    try:
        with folder_written_whole(output) as folder:
            with _without_bars():
                model.save_pretrained(folder)
            if found.symbols is not None:
                _write_tokenizer(found, tokenizer, folder)
    except OSError as error:
        raise XLNetFastError(f"{output} could not be written: {error.strerror or error}") from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the progress bars of transformers, which nobody needs for one file."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_size(words: int, vocab_size: int, may_be_fewer: bool) -> None:
    """Raise ArgumentError for another model's vocabulary; words may have been added to a model."""
    if words > vocab_size or (words < vocab_size and not may_be_fewer):
        raise ArgumentError(
            f"the vocabulary has {words} words and the model {vocab_size}: it is another model's"
        )


def _write_tokenizer(found: Found, source: Path | None, folder: Path) -> None:
    if source is not None:
        TransfoXLTokenizer.from_pretrained(source).save_pretrained(folder)
        return
    words = {word: number for number, word in enumerate(found.symbols or ())}
    path = folder / VOCABULARY
    path.write_text(json.dumps(words, ensure_ascii=False), encoding="utf-8")
    tokenizer = TransfoXLTokenizer(
        vocab_json_file=path,
        unk_token=next((word for word in UNKNOWN if word in words), None),
        eos_token=END if END in words else None,
        additional_special_tokens=None,
        **found.tokenizer,
    )
    tokenizer.save_pretrained(folder)


def _model(found: Found, config: TransfoXLConfig) -> Any:
    """A model with the weights, all of them, in their dtype."""
    weights = found.weights
    if found.architecture == CLASSIFIER:
        config.num_labels = weights[SCORE].shape[0]
    if found.architecture == BARE:
        weights = {name.removeprefix(BODY): value for name, value in weights.items()}
    model = _CLASSES.get(found.architecture, TransfoXLLMHeadModel)(config)
    model.to(next(iter(weights.values())).dtype)
    model.load_state_dict(weights)
    return model.eval()
