"""How text becomes words and words become text again: Moses' rules, or a small set of our own.

Transformer-XL was trained on WikiText-103, which Moses' tokenizer had split. `sacremoses` has its
rules; it is optional, and without it the words differ in details.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import warnings
from collections.abc import Sequence
from typing import Protocol

from xlnet_fast.errors import ArgumentError

_INSTALL = "pip install sacremoses"


class Rules(Protocol):
    """How to split and to join; numbers and what was lower-cased are not their matter."""

    def split(self, text: str, kept: Sequence[str]) -> list[str]:
        """The words of a text; `kept` are never split, in upper or lower case."""

    def join(self, words: Sequence[str]) -> str:
        """The text of words."""


def split_numbers(words: Sequence[str]) -> list[str]:
    """Split numbers at commas and points between digits: "5,000" is "5", "@,@", "000"."""
    return [part for word in words for part in _IN_NUMBER.sub(r" @\g<0>@ ", word).split()]


def join_numbers(text: str) -> str:
    """Undo `split_numbers` in a text: "5 @,@ 000" is "5,000"."""
    return text.replace(" @,@ ", ",").replace(" @.@ ", ".")


_IN_NUMBER = re.compile(r"(?<=\d)[,.](?=\d)")


# ---- which rules ----


def has_sacremoses() -> bool:
    """Whether it can be imported."""
    return importlib.util.find_spec("sacremoses") is not None


def check_moses(moses: bool | None) -> None:
    """See that the rules asked for are there.

    Raises:
        ArgumentError: `moses` is none of True, False and None, or True and sacremoses is missing.
    """
    if moses is not None and not isinstance(moses, bool):
        raise ArgumentError(f"moses must be True, False or None, got {moses!r}")
    if moses and not has_sacremoses():
        raise ArgumentError(f"moses=True needs sacremoses: {_INSTALL}, or leave it to moses=False")


@functools.cache
def rules(moses: bool | None, language: str) -> Rules:
    """Moses' rules or our own; with None Moses' where sacremoses is installed, or a warning."""
    if moses or (moses is None and has_sacremoses()):
        return MosesRules(language)
    if moses is None:
        _warn()
    return OwnRules()


@functools.cache
def _warn() -> None:
    warnings.warn(
        "sacremoses is not installed, so text is split by simpler rules than the text that "
        "Transformer-XL's checkpoints were trained on: some words differ, and perplexity with "
        f"them. `{_INSTALL}` makes them equal; moses=False asks for these rules and silences this",
        stacklevel=4,
    )


class MosesRules:
    """Those of Moses, by sacremoses, as Hugging Face 4.37.2 uses it."""

    def __init__(self, language: str) -> None:
        moses = importlib.import_module("sacremoses")
        self._normalizer = moses.MosesPunctNormalizer(language)
        self._tokenizer = moses.MosesTokenizer(language)
        self._detokenizer = moses.MosesDetokenizer(language)

    def split(self, text: str, kept: Sequence[str]) -> list[str]:
        """Punctuation is normalized first, and dashes within words become "@-@"."""
        words: list[str] = self._tokenizer.tokenize(
            self._normalizer.normalize(text),
            aggressive_dash_splits=True,
            return_str=False,
            escape=False,
            protected_patterns=[re.escape(word) for word in kept],
        )
        return words

    def join(self, words: Sequence[str]) -> str:
        """Punctuation goes where it belongs, by counting quotes."""
        text: str = self._detokenizer.detokenize(list(words))
        return text


# ---- our own ----

_LETTER = r"(?:[^\W_]|[\u0300-\u036f])"  # or digit; accents that follow their letter
_TITLES = "Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Gen|Col|Capt|Lt|Sgt|Rev|Gov|Sen|Rep|vs"
_WORDS = rf"""
    \.{{2,}}                                         # an ellipsis
  | (?:[^\W\d_]\.){{2,}}                             # U.S.
  | (?:{_TITLES}|[A-Z])\.(?=\s)                      # Mr. J. Smith
  | {_LETTER}+\.(?=\s+[a-z])                         # no end of a sentence
  | {_LETTER}+(?:(?<=\d)[.,](?=\d){_LETTER}+)*       # words, and numbers in one
  | (?<=[^\W\d_])'[^\W\d_]+                          # 's
  | (?P<dash>(?<=[^\W_])-(?=[^\W_]))
  | \S
"""
_PUNCTUATION = str.maketrans(
    {"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "'", "’": "'", "‚": "'", "`": "'",
     "´": "'", "…": "...", "–": "-", "—": " - "}
)  # fmt: skip
_QUOTED = re.compile(r'(?<= )" ([^"]*) "(?= )')
_TO_THE_LEFT = re.compile(r" ([.,;:!?%)\]}]+|'[^\W\d_]+)(?= )")
_TO_THE_RIGHT = re.compile(r"(?<= )([(\[{$£€]) ")


class OwnRules:
    """Words, numbers, abbreviations, contractions and dashes within words; else single signs."""

    def split(self, text: str, kept: Sequence[str]) -> list[str]:
        """Quotes and long dashes become plain ones first."""
        text = text.translate(_PUNCTUATION).replace("''", ' " ')
        return [
            "@-@" if match.lastgroup == "dash" else match.group()
            for match in _pattern(tuple(kept)).finditer(text)
        ]

    def join(self, words: Sequence[str]) -> str:
        """Quotes go in pairs, other punctuation to the word that it belongs to."""
        text = f" {' '.join(words)} ".replace(" @-@ ", "-")
        text = _QUOTED.sub(r'"\1"', text)
        text = _TO_THE_RIGHT.sub(r"\1", _TO_THE_LEFT.sub(r"\1", text))
        return text.strip()


@functools.lru_cache(maxsize=16)
def _pattern(kept: tuple[str, ...]) -> re.Pattern[str]:
    whole = "".join(f"(?i:{re.escape(word)}) | " for word in kept if word)
    return re.compile(whole + _WORDS, re.VERBOSE)
