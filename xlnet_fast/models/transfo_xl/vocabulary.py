"""Vocabularies of Transformer-XL: a word's id is its place, and files of four kinds hold them."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xlnet_fast.errors import ArgumentError

from .pickle_state import Foreign, Named
from .pickles import MOST_BYTES, load

FILES = {
    "vocab_json_file": "vocab.json",
    "vocab_file": "vocab.txt",
    "pretrained_vocab_file_torch": "vocab.bin",
    "pretrained_vocab_file": "vocab.pkl",
}
"""Argument of the tokenizer -> its file in a folder. The first that is there is read."""

_PICKLED = (".bin", ".pkl", ".pickle", ".pt", ".pth")


@dataclass(frozen=True)
class Vocabulary:
    """Words in the order of their ids, each once, and how often each was seen, if a file says."""

    symbols: list[str]
    counts: dict[str, int] = field(default_factory=dict)
    from_text: bool = False


def read_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """Read a vocabulary; what kind of file it is shows its ending.

    - `.json`: {word: id}, or the list of words.
    - `.bin`, `.pkl`, `.pickle`, `.pt`, `.pth`: the attributes of Hugging Face's tokenizer, or of
      the original `Vocab`, as `pickle` or `torch.save` wrote them; data alone is read of them.
    - any other: UTF-8 text, a word a line, or a word and its count.

    Raises:
        ArgumentError: it does not exist or cannot be read, is too large, cut short or damaged,
            wants anything but data, or is no vocabulary: a word that is empty or there twice, or
            ids that are not 0, 1, 2, ... each once.
    """
    file = Path(path)
    what = f"the vocabulary {file}"
    data = _bytes_of(file, what)
    suffix = file.suffix.lower()
    if suffix == ".json":
        return _from_json(data, what)
    if suffix in _PICKLED:
        return _from_pickle(data, what)
    return _from_text(data, what)


def _bytes_of(file: Path, what: str) -> bytes:
    try:
        if file.exists() and not file.is_file():
            raise ArgumentError(f"{what} is no file; give one of {', '.join(FILES.values())}")
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise ArgumentError(
                f"{what} has {size / 2**20:.0f} MiB and is not read: those of a million words take "
                f"less than {MOST_BYTES >> 20}"
            )
        return file.read_bytes()
    except FileNotFoundError:
        raise ArgumentError(f"{what} does not exist") from None
    except OSError as error:
        raise ArgumentError(f"{what} cannot be read: {error.strerror}") from error


# ---- the kinds of files ----


class _Pairs(list[tuple[str, Any]]):
    """A JSON object with its order and its doubles."""


def _from_json(data: bytes, what: str) -> Vocabulary:
    try:
        content = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_Pairs)
    except UnicodeDecodeError as error:
        raise _not_utf8(error, what) from None
    except (ValueError, RecursionError) as error:
        raise ArgumentError(f"{what} is no JSON, or was cut short: {error}") from error
    if isinstance(content, _Pairs):
        _check_symbols([symbol for symbol, _ in content], what)
        return Vocabulary(_in_order(content, len(content), what))
    if isinstance(content, list):
        return Vocabulary(_check_symbols(content, what))
    raise ArgumentError(f"{what} holds neither {{word: id}} nor a list of words")


def _from_text(data: bytes, what: str) -> Vocabulary:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, what) from None
    # Not splitlines, which takes more characters for the end of a line than files do.
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    symbols: list[str] = []
    counts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word, *rest = line.split() or [""]
        if not word:
            raise ArgumentError(f"{what} has nothing in line {number}; each line is to hold a word")
        if len(rest) > 1 or not all(count.isdecimal() and len(count) < 19 for count in rest):
            raise ArgumentError(
                f"line {number} of {what} is {reprlib.repr(line)}; each line is to hold a word, or "
                "a word and its count"
            )
        symbols.append(word)
        counts.update((word, int(count)) for count in rest)
    return Vocabulary(_check_symbols(symbols, what), counts, from_text=True)


def _from_pickle(data: bytes, what: str) -> Vocabulary:
    content = load(data, what)
    if type(content) is not dict:
        raise ArgumentError(
            f"{what} holds {_kind(content)}; expected the attributes of a tokenizer, a dict"
        )
    listed, index = content.get("idx2sym"), content.get("sym2idx")
    if type(listed) is not list or (index is not None and type(index) is not dict):
        raise ArgumentError(
            f"{what} holds {_kind(listed)} as idx2sym and {_kind(index)} as sym2idx; expected the "
            "list of words and the dict of their ids"
        )
    symbols = _check_symbols(listed, what)
    if index is not None and _in_order(index.items(), len(symbols), what) != symbols:
        raise ArgumentError(f"{what} contradicts itself: sym2idx numbers the words unlike idx2sym")
    counter = content.get("counter")
    counts = counter if type(counter) is dict else {}
    return Vocabulary(symbols, {word: n for word, n in counts.items() if type(n) is int})


# ---- what makes a vocabulary ----


def _check_symbols(symbols: list[Any], what: str) -> list[str]:
    """The same list, if it holds words, each once.

    Raises:
        ArgumentError: it does not.
    """
    if not symbols:
        raise ArgumentError(f"{what} holds no word")
    for place, symbol in enumerate(symbols):
        if type(symbol) is not str or not symbol:
            found = "empty" if symbol == "" else _kind(symbol)
            raise ArgumentError(f"{what}: the word with id {place} is {found}; expected text")
    if len(set(symbols)) < len(symbols):
        first: dict[str, int] = {}
        for place, symbol in enumerate(symbols):
            if first.setdefault(symbol, place) != place:
                raise ArgumentError(
                    f"{what} has {reprlib.repr(symbol)} twice, at {first[symbol]} and {place}; "
                    "each word needs one id"
                )
    return symbols


def _in_order(pairs: Iterable[tuple[str, Any]], size: int, what: str) -> list[str]:
    """The words in the order of their ids.

    Raises:
        ArgumentError: the ids are not 0 to size - 1, each once.
    """
    symbols: list[Any] = [None] * size
    found = 0
    for symbol, index in pairs:
        if type(index) is not int or not 0 <= index < size or symbols[index] is not None:
            raise ArgumentError(
                f"{what} gives {reprlib.repr(symbol)} the id {_kind(index)}; the ids of {size} "
                f"words are 0 to {size - 1}, each once"
            )
        symbols[index] = symbol
        found += 1
    if found < size:
        raise ArgumentError(f"{what} has {size} words and {found} ids")
    return symbols


def _kind(value: Any) -> str:
    """A value in a message: small integers and None as they are, else what it is."""
    if value is None or (type(value) is int and abs(value) < 2**63):
        return str(value)
    if isinstance(value, (Foreign, Named)):
        return f"a {value.name[:200]}"
    return "a dict" if isinstance(value, _Pairs) else f"a {type(value).__name__}"


def _not_utf8(error: UnicodeDecodeError, what: str) -> ArgumentError:
    return ArgumentError(
        f"{what} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}); convert "
        "it, for example with iconv -t UTF-8"
    )
