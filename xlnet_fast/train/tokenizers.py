"""XLNet tokenizers: an existing one, one of the Hub, or one trained on the text."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.text import MODEL_FILE, SPECIAL_TOKENS, cache_directory, train_tokenizer
from xlnet_fast.train.sources import OpenSource

_FILES = (MODEL_FILE, "tokenizer.json")
TRAINING_LINES = 2_000_000
"""Lines that a tokenizer is trained on at most, spread over the text (about 400 MB)."""


def load_tokenizer(name: str) -> Any:
    """An ``XLNetTokenizer``.

    Args:
        name: a folder with ``spiece.model`` or ``tokenizer.json``, a SentencePiece ``.model`` file,
            or a Hub id.

    Raises:
        ArgumentError: there is none, it cannot be read, or it lacks XLNet's special tokens.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / file).is_file() for file in _FILES):
        raise ArgumentError(f"the folder {name} holds no tokenizer ({' or '.join(_FILES)})")
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ArgumentError(f"the tokenizer {name} does not exist")
    try:
        tokenizer = _from_file(path) if path.is_file() else _from_pretrained(name, path)
    except Exception as error:  # of the tokenizers library, the Hub client and transformers
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ArgumentError(f"no tokenizer can be read from {name}: {first}") from error
    # What it cannot find or read, transformers replaces by an empty vocabulary without a word.
    if len(tokenizer) <= len(SPECIAL_TOKENS):
        raise ArgumentError(
            f"no tokenizer can be read from {name}: it is not there, cannot be fetched, or is no "
            "SentencePiece model"
        )
    known = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS if token not in known]
    if missing:
        raise ArgumentError(
            f"the tokenizer {name} has no {', '.join(missing)}: expected an XLNet vocabulary"
        )
    return tokenizer


def _from_pretrained(name: str, path: Path) -> Any:
    from transformers import XLNetTokenizer

    return XLNetTokenizer.from_pretrained(str(path) if path.is_dir() else name)


def _from_file(path: Path) -> Any:
    """That of a SentencePiece model; transformers finds it in a folder, under its own name."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / MODEL_FILE)
        return _from_pretrained("", Path(folder))


def train_on(source: OpenSource, vocab_size: int, folder: Path | None = None) -> Any:
    """Train a SentencePiece model in XLNet's id order on a source's text, and load it.

    The same text and size give the same model, which is kept in the user's cache.

    Args:
        vocab_size: the most pieces to learn; a small text gives fewer.
        folder: where to put it instead.

    Raises:
        ArgumentError: as :func:`xlnet_fast.text.train_tokenizer`.
    """
    if folder is None:
        folder = cache_directory() / "tokenizers" / f"{source.digest[:16]}-{vocab_size}-source"
    text = "\n".join(line.strip() for line in source.lines(TRAINING_LINES))
    return load_tokenizer(str(train_tokenizer(text, vocab_size, folder)))


def check_vocabulary(tokenizer: Any, vocab_size: int, model: str) -> None:
    """Compare a tokenizer with a model's embedding table.

    Raises:
        ArgumentError: the tokenizer has ids that the model lacks.
    """
    if len(tokenizer) > vocab_size:
        raise ArgumentError(
            f"the tokenizer has {len(tokenizer)} pieces, {model} only {vocab_size}: give the "
            "tokenizer that the model was trained with"
        )
