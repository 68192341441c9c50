"""Tokenizers of running text: of XLNet's kind, of any kind, and Transformer-XL's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, XLNetTokenizer

from xlnet_fast.checkpoint import first_line, looks_like_path, quiet, ready_to_fetch
from xlnet_fast.errors import ArgumentError, XLNetFastError
from xlnet_fast.models.transfo_xl import TransfoXLTokenizer
from xlnet_fast.models.transfo_xl.vocabulary import FILES
from xlnet_fast.text import MODEL_FILE
from xlnet_fast.train.shared.tokenizers import load_tokenizer

_PIECES = "tokenizer.json"
_FILES = (_PIECES, "tokenizer_config.json", "vocab.json", "vocab.bin")


def load_text_tokenizer(name: str) -> Any:
    """A tokenizer of transformers, such as encodes running text.

    Args:
        name: a folder, a SentencePiece ``.model`` file, or a Hub id.

    Raises:
        ArgumentError: there is none, or it cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_file() or (path / MODEL_FILE).is_file():
        return load_tokenizer(name)
    if not path.exists() and looks_like_path(name):
        raise ArgumentError(f"the tokenizer {name} does not exist")
    source = {} if path.exists() else ready_to_fetch(name, _FILES)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name, **source)
    except Exception as error:  # of the tokenizers library, the Hub client and transformers
        raise ArgumentError(f"no tokenizer can be read from {name}: {first_line(error)}") from error
    return load_tokenizer(name) if isinstance(tokenizer, XLNetTokenizer) else tokenizer


def load_transfo_xl_tokenizer(name: str) -> Any:
    """The tokenizer of a Transformer-XL: words, or the pieces that ``pretrain`` trained it on.

    Args:
        name: a folder, a Hub id, or the file of a vocabulary of words.

    Raises:
        ArgumentError: it is not there or cannot be read.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return TransfoXLTokenizer(vocab_file=path)
    if (path / _PIECES).is_file():
        return load_text_tokenizer(name)
    if not path.is_dir() and looks_like_path(name):
        raise ArgumentError(f"the tokenizer {name} does not exist")
    source = {} if path.is_dir() else ready_to_fetch(name, tuple(FILES.values()))
    try:
        with quiet():
            return TransfoXLTokenizer.from_pretrained(
                str(path) if path.is_dir() else name, **source
            )
    except XLNetFastError:
        raise
    except Exception as error:  # of the Hub client, the parsers and transformers
        raise ArgumentError(f"no tokenizer can be read from {name}: {first_line(error)}") from error
