"""XLNet tokenizers of a folder, a file or the Hub, and whether one fits a model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xlnet_fast.checkpoint import looks_like_path, ready_to_fetch
from xlnet_fast.errors import ArgumentError
from xlnet_fast.text import MODEL_FILE, SPECIAL_TOKENS

_FILES = (MODEL_FILE, "tokenizer.json")
_INPUTS = ("input_ids", "token_type_ids", "attention_mask")


def load_run_tokenizer(
    tokenizer: str | None, model: str | None, load: Callable[[str], Any] | None = None
) -> Any:
    """The tokenizer that a run's options name: its own, else that of the model.

    Args:
        tokenizer: as in :func:`load_tokenizer`.
        model: a folder or a Hub id; needed where ``tokenizer`` is None or empty.
        load: takes the place of :func:`load_tokenizer`.

    Raises:
        ArgumentError: as :func:`load_tokenizer`, or the model's path does not exist.
    """
    load = load or load_tokenizer
    if tokenizer:
        return load(tokenizer)
    if not model:
        raise ArgumentError("neither a tokenizer nor a model was given, expected one of them")
    if not Path(model).expanduser().exists() and looks_like_path(model):
        raise ArgumentError(f"the model {model} of --model does not exist")
    return load(model)


def load_tokenizer(name: str) -> Any:
    """An ``XLNetTokenizer`` that gives segments and pads on the left, whatever its files say.

    Hugging Face's leaves ``token_type_ids`` out unless asked, and XLNet then computes something
    else: <cls> has a segment of its own. What is saved has them asked for, so that whoever loads
    the model feeds it as it was trained. Nothing is cut unless a call says so.

    Args:
        name: a folder with ``spiece.model`` or ``tokenizer.json``, a SentencePiece ``.model`` file,
            or a Hub id.

    Raises:
        ArgumentError: there is none, it cannot be read, or it lacks XLNet's special tokens.
    """
    path = Path(name).expanduser()
    if path.is_dir() and not any((path / file).is_file() for file in _FILES):
        raise ArgumentError(f"the folder {name} holds no tokenizer ({' or '.join(_FILES)})")
    if not path.exists() and looks_like_path(name):
        raise ArgumentError(f"the tokenizer {name} does not exist")
    source = {} if path.exists() else ready_to_fetch(name, _FILES)
    try:
        tokenizer = _from_file(path) if path.is_file() else _from_pretrained(name, path, **source)
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
    _pad_as_xlnet(tokenizer, name)
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = list(_INPUTS)
    forget_truncation(tokenizer)
    return tokenizer


def forget_truncation(tokenizer: Any) -> None:
    """Undo what a call with ``max_length`` left in the tokenizer, or else it would be saved.

    A call sets the length in the backend, and ``tokenizer.json`` would hold it. XLNet has no limit.
    """
    tokenizer.backend_tokenizer.no_truncation()


def _pad_as_xlnet(tokenizer: Any, name: str) -> None:
    """Labels are placed, and summaries taken, as if <cls> were the last position of every row."""
    if tokenizer.padding_side != "left":
        # Here, for it takes the trainer along, which who only reads texts has no use for.
        from xlnet_fast.train.shared.checkpoints import warn

        warn(
            f"the tokenizer {name} pads on the right; XLNet's <cls> stands at the end, so this run "
            "pads on the left, and so does the tokenizer that is saved with the model"
        )
    # What is in init_kwargs is saved: other classes of transformers pad on the right unless told.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<pad>"
    tokenizer.backend_tokenizer.no_padding()  # a tokenizer.json may say how, and would be saved so


def _from_pretrained(name: str, path: Path, **source: bool) -> Any:
    from transformers import XLNetTokenizer

    return XLNetTokenizer.from_pretrained(str(path) if path.is_dir() else name, **source)


def _from_file(path: Path) -> Any:
    """That of a SentencePiece model; transformers finds it in a folder, under its own name."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(path, Path(folder) / MODEL_FILE)
        return _from_pretrained("", Path(folder))


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
