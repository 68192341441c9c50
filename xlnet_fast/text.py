"""English text that every Python carries, and SentencePiece tokenizers in XLNet's id order.

The built-in text is CPython's own language reference (`pydoc_data.topics`), so every command of the
package runs on real text without a network. `train_tokenizer` writes `spiece.model`, which
`transformers.XLNetTokenizer.from_pretrained(directory)` loads with the same ids.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ArgumentError, XLNetFastError
from .files import write_whole

# The order of the published XLNet vocabularies; 0, 1 and 2 are SentencePiece's own meta symbols.
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>")
MODEL_FILE = "spiece.model"
_RECORD_FILE = "training.json"
# SentencePiece drops lines above 4192 bytes without a word, so text is cut below that.
_MAX_SENTENCE_CHARACTERS = 1000


def builtin_text() -> str:
    """Return about 0.45 MB of English: CPython's language reference, one paragraph a line.

    Raises `XLNetFastError` where the interpreter was packaged without `pydoc_data`.
    """
    return "\n".join(paragraph for article in builtin_articles().values() for paragraph in article)


@functools.cache
def builtin_articles() -> dict[str, tuple[str, ...]]:
    """Return the paragraphs of the built-in text's articles, by title in alphabetical order.

    Raises `XLNetFastError` where the interpreter was packaged without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise XLNetFastError(
            "this Python was packaged without pydoc_data, the built-in text; "
            "give a text file instead"
        ) from error
    return {name: tuple(_paragraphs(topics[name])) for name in sorted(topics)}


def _paragraphs(article: str) -> Iterator[str]:
    for block in re.split(r"\n\s*\n", article):
        # Rows of ***, === or --- under a heading are markup, not language.
        lines = [line.strip() for line in block.splitlines()]
        words = " ".join(line for line in lines if line and not re.fullmatch(r"[*=~^.\-]+", line))
        if words:
            yield words


def load_text(path: str | os.PathLike[str], *, min_characters: int = 1000) -> str:
    """Read a UTF-8 text file.

    Raises `ArgumentError` when the file is missing, a directory, unreadable, empty, binary, not
    UTF-8, or has fewer than `min_characters` characters that are not white space.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise ArgumentError(f"text file {file} does not exist") from None
    except IsADirectoryError:
        raise ArgumentError(f"{file} is a directory; give one UTF-8 text file") from None
    except OSError as error:
        raise ArgumentError(f"text file {file} cannot be read: {error.strerror}") from error
    return decode_text(data, f"text file {file}", min_characters=min_characters)


def decode_text(data: bytes, name: str, *, min_characters: int = 1000) -> str:
    """Decode UTF-8 text, called `name` in messages; raises `ArgumentError` as `load_text` does."""
    if not data:
        raise ArgumentError(f"{name} is empty")
    if b"\0" in data:
        raise ArgumentError(
            f"{name} is no text but a binary file (it holds zero bytes, the first at byte "
            f"{data.index(0)}); give UTF-8 text"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArgumentError(
            f"{name} is not UTF-8 (byte {error.start} is 0x{data[error.start]:02x}); "
            "convert it, for example with iconv -t UTF-8"
        ) from None
    characters = len(re.sub(r"\s", "", text))
    if characters < min_characters:
        raise ArgumentError(
            f"{name} is too short: {characters} characters besides white space, "
            f"at least {min_characters} are needed"
        )
    return text


def cache_directory() -> Path:
    """Return this user's cache folder of the package (`XDG_CACHE_HOME` or `~/.cache`)."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    base = Path(root) if os.path.isabs(root) else Path.home() / ".cache"
    return base / "xlnet_fast"


def train_tokenizer(
    source: str | os.PathLike[str],
    vocab_size: int = 8000,
    directory: str | os.PathLike[str] | None = None,
) -> Path:
    """Train a SentencePiece unigram model in XLNet's id order and return the folder that holds it.

    source: the text itself when a `str`, a text file when a `Path`.
    vocab_size: the most pieces to learn; a small text gives fewer.
    directory: where to put `spiece.model`; by default a folder of the user's cache named after the
        text and the size, so the same text is trained on once.

    Raises `ArgumentError` for a text file that `load_text` refuses, a text without words, or a
    `vocab_size` that cannot hold the text's characters; `XLNetFastError` without sentencepiece.
    """
    if isinstance(vocab_size, bool) or not isinstance(vocab_size, int):
        raise ArgumentError(f"vocab_size must be an int, got {type(vocab_size).__name__}")
    if vocab_size <= len(SPECIAL_TOKENS):
        raise ArgumentError(
            f"vocab_size is {vocab_size}; it must exceed the {len(SPECIAL_TOKENS)} special tokens"
        )
    text = source if isinstance(source, str) else load_text(source)
    if not text.strip():
        raise ArgumentError("the text to train a tokenizer on holds no words")
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    record = {
        "text_sha256": digest,
        "vocab_size": vocab_size,
        "special_tokens": list(SPECIAL_TOKENS),
    }
    if directory is None:
        folder = cache_directory() / "tokenizers" / f"{digest[:16]}-{vocab_size}"
    else:
        folder = Path(directory)
    if _is_current(folder, record):
        return folder
    model = _train(text, vocab_size)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The old record goes first, the new one comes last: it never describes another model.
        (folder / _RECORD_FILE).unlink(missing_ok=True)
        write_whole(folder / MODEL_FILE, model)
        write_whole(folder / _RECORD_FILE, json.dumps(record, indent=1).encode())
    except OSError as error:
        raise ArgumentError(f"cannot write a tokenizer to {folder}: {error.strerror}") from error
    return folder


def _is_current(folder: Path, record: dict[str, object]) -> bool:
    sentencepiece = _sentencepiece()
    try:
        if json.loads((folder / _RECORD_FILE).read_text()) != record:
            return False
        sentencepiece.SentencePieceProcessor().LoadFromSerializedProto(
            (folder / MODEL_FILE).read_bytes()
        )
    except (OSError, ValueError, RuntimeError):
        return False  # absent or damaged: trained afresh
    return True


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise XLNetFastError(
            "training a tokenizer needs sentencepiece: pip install sentencepiece"
        ) from error
    return sentencepiece


def _train(text: str, vocab_size: int) -> bytes:
    model = io.BytesIO()
    try:
        _sentencepiece().SentencePieceTrainer.Train(
            sentence_iterator=_sentences(text),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            control_symbols=list(SPECIAL_TOKENS[3:]),
            num_threads=1,  # the same text gives the same model
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArgumentError(
            f"SentencePiece cannot learn {vocab_size} pieces from this text: {reason}"
        ) from error
    return model.getvalue()


def _sentences(text: str) -> Iterator[str]:
    for line in text.splitlines():
        words = line.split()
        sentence: list[str] = []
        characters = 0
        for word in words:
            if sentence and characters + len(word) > _MAX_SENTENCE_CHARACTERS:
                yield " ".join(sentence)
                sentence, characters = [], 0
            sentence.append(word[:_MAX_SENTENCE_CHARACTERS])
            characters += len(word) + 1
        if sentence:
            yield " ".join(sentence)
