"""Words and their ids: the part of Transformer-XL's tokenizer that knows no text."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizer

from xlnet_fast.errors import ArgumentError
from xlnet_fast.files import write_whole

from .vocabulary import FILES, read_vocabulary

logger = logging.getLogger(__name__)

_UNKNOWN = ("<unk>", "<UNK>")


class WordIds(PreTrainedTokenizer):
    """A tokenizer's vocabulary: read, counted, changed and saved.

    `idx2sym` is the list of words, `sym2idx` the dict of their ids, `counter` what was counted.
    Tokens added after the vocabulary have the ids that follow.
    """

    vocab_files_names: ClassVar[dict[str, str]] = FILES

    # What the class that transformers has, and the constructor of ours, set.
    unk_token: Any
    special: list[str]
    min_freq: int
    max_size: int | None
    vocab_file: str | os.PathLike[str] | None

    def _begin_vocabulary(self, source: str | os.PathLike[str] | None, unk_token: Any) -> Any:
        """Read the vocabulary, before the base class adds tokens to it.

        Returns:
            `unk_token`, in the spelling that the vocabulary has.
        """
        self.counter: Counter[str] = Counter()
        self.idx2sym: list[str] = []
        self.sym2idx: dict[str, int] = {}
        return unk_token if source is None else self._adopt(source, unk_token)

    def _adopt(self, source: str | os.PathLike[str], unk_token: Any) -> Any:
        vocabulary = read_vocabulary(source)
        self._number(vocabulary.symbols)
        self.counter = Counter(vocabulary.counts)
        # Of a text that has both spellings, 4.37.2 takes <UNK>.
        if vocabulary.from_text and str(unk_token) == "<unk>" and "<UNK>" in self.sym2idx:
            return "<UNK>"
        return self._spelling(unk_token)

    def _spelling(self, unk_token: Any) -> Any:
        """The unknown word as it is in the vocabulary, where <unk> and <UNK> are one."""
        if str(unk_token) in self.sym2idx or str(unk_token) not in _UNKNOWN:
            return unk_token
        return next((other for other in _UNKNOWN if other in self.sym2idx), unk_token)

    def _number(self, symbols: list[str]) -> None:
        self.idx2sym = symbols
        self.sym2idx = {symbol: index for index, symbol in enumerate(symbols)}

    def _check_added_tokens(self) -> None:
        for token, index in self._added_tokens_encoder.items():
            own = self.sym2idx.get(token)
            if own == index or (own is None and index >= len(self.idx2sym)):
                continue
            there = f"it at {own}" if own is not None else f"{self.idx2sym[index]!r} there"
            raise ArgumentError(
                f"the added tokens place {token!r} at {index}, and the vocabulary has "
                f"{there}: tokenizer_config.json or added_tokens.json belongs to another vocabulary"
            )

    def _place_added_tokens(self, unk_token: Any = None) -> None:
        """Number added tokens anew, once the vocabulary has changed; `unk_token`: a new one."""
        tokens = list(self._added_tokens_decoder.values())
        if unk_token is not None and str(unk_token) != str(self.unk_token):
            tokens = [token for token in tokens if token.content != str(self.unk_token)]
            self.unk_token = unk_token
        self._added_tokens_decoder.clear()
        self._added_tokens_encoder.clear()
        self._add_tokens(tokens)
        named = self.all_special_tokens
        self._add_tokens([t for t in named if t not in self._added_tokens_encoder], True)

    # ---- words and ids ----

    @property
    def vocab_size(self) -> int:
        """Words of the vocabulary, without tokens that were added after it."""
        return len(self.idx2sym)

    def get_vocab(self) -> dict[str, int]:
        """Words and added tokens with their ids."""
        return {**self.sym2idx, **self._added_tokens_encoder}

    def _convert_token_to_id(self, token: str) -> int:
        index = self.sym2idx.get(token)
        if index is not None:
            return index
        for unknown in (self.unk_token, *_UNKNOWN):
            if unknown in self.sym2idx:
                return self.sym2idx[unknown]
        raise ArgumentError(
            f"{token!r} is not in the vocabulary, which has neither <unk> nor <UNK> to stand for it"
        )

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < len(self.idx2sym):
            raise ArgumentError(
                f"id {index} is outside the vocabulary, whose ids are 0 to {len(self.idx2sym) - 1}"
            )
        return self.idx2sym[index]

    def convert_to_tensor(self, symbols: Sequence[str]) -> torch.Tensor:
        """The ids of words, int64 (words,)."""
        return torch.tensor(self.convert_tokens_to_ids(list(symbols)), dtype=torch.long)

    # ---- making and changing a vocabulary ----

    def count_file(
        self, path: str | os.PathLike[str], verbose: bool = False, add_eos: bool = False
    ) -> list[list[str]]:
        """Count the words of a UTF-8 text for `build_vocab`; returns those of each line.

        Raises:
            ArgumentError: the file cannot be read.
        """
        sentences = [self.tokenize(line, add_eos=add_eos) for line in _lines(path, verbose)]
        self.count_sents(sentences)
        return sentences

    def count_sents(self, sents: Iterable[Iterable[str]], verbose: bool = False) -> None:
        """Count words for `build_vocab`."""
        for symbols in _told(sents, "counting sentences", verbose):
            self.counter.update(symbols)

    def build_vocab(self) -> None:
        """Make the vocabulary anew: of `vocab_file` if there is one, else of what was counted.

        The words of `special` come first, then the `max_size` most frequent ones, without those
        seen less than `min_freq` times. Added tokens get new ids.

        Raises:
            ArgumentError: `vocab_file` cannot be read, or there is no word to make it of.
        """
        if self.vocab_file is not None:
            unk_token = self._adopt(self.vocab_file, self.unk_token)
        else:
            counted = self.counter.most_common(self.max_size)
            frequent = [symbol for symbol, count in counted if count >= self.min_freq]
            if not self.special and not frequent:
                raise ArgumentError(
                    f"no word was counted, or none {self.min_freq} times (min_freq); count_file or "
                    "count_sents comes first"
                )
            self._number(list(dict.fromkeys([*self.special, *frequent])))
            unk_token = self._spelling(self.unk_token)
        self._place_added_tokens(unk_token)

    def add_symbol(self, sym: str) -> None:
        """Give a word the next id, if it has none."""
        if sym not in self.sym2idx:
            self._number([*self.idx2sym, sym])
            self._place_added_tokens()

    add_special = add_symbol

    def move_added_token(self, token: str, target_idx: int) -> None:
        """Make an added token a word with this id; the words from there on move up by one.

        For an adaptive embedding, of which another cluster than the last is to grow.

        Raises:
            ArgumentError: the token was not added, is a word already, or there is no such place.
        """
        if token in self.sym2idx:
            raise ArgumentError(f"{token!r} is a word of the vocabulary already")
        if token not in self._added_tokens_encoder:
            raise ArgumentError(f"{token!r} is no added token; add_tokens([{token!r}]) comes first")
        if not 0 <= target_idx <= len(self.idx2sym):
            raise ArgumentError(f"target_idx is {target_idx}; expected 0 to {len(self.idx2sym)}")
        self._number([*self.idx2sym[:target_idx], token, *self.idx2sym[target_idx:]])
        self._place_added_tokens()

    # ---- files ----

    def encode_file(
        self,
        path: str | os.PathLike[str],
        ordered: bool = False,
        verbose: bool = False,
        add_eos: bool = True,
        add_double_eos: bool = False,
    ) -> torch.Tensor | list[torch.Tensor]:
        """The ids of a UTF-8 text: an int64 tensor for each line, or with `ordered` one for all.

        Raises:
            ArgumentError: the file cannot be read.
        """
        ends = {"add_eos": add_eos, "add_double_eos": add_double_eos}
        sents = (self.tokenize(line, **ends) for line in _lines(path, verbose))
        return self.encode_sents(sents, ordered=ordered)

    def encode_sents(
        self, sents: Iterable[Sequence[str]], ordered: bool = False, verbose: bool = False
    ) -> torch.Tensor | list[torch.Tensor]:
        """The ids of lists of words, as `encode_file` returns them."""
        told = _told(sents, "encoding sentences", verbose)
        encoded = [self.convert_to_tensor(symbols) for symbols in told]
        if not ordered:
            return encoded
        return torch.cat(encoded) if encoded else torch.empty(0, dtype=torch.long)

    def save_vocabulary(
        self, save_directory: str | os.PathLike[str], filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write vocab.json, {word: id}, which :func:`.vocabulary.read_vocabulary` reads.

        Raises:
            ArgumentError: there is no vocabulary, or it cannot be written there.
        """
        if not self.idx2sym:
            raise ArgumentError("there is no vocabulary to save; build_vocab makes one")
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        path = Path(save_directory) / (prefix + FILES["vocab_json_file"])
        try:
            write_whole(path, json.dumps(self.sym2idx, ensure_ascii=False, indent=0) + "\n")
        except OSError as error:
            raise ArgumentError(f"{path} cannot be written: {error.strerror}") from error
        return (str(path),)


def _lines(path: str | os.PathLike[str], verbose: bool) -> Iterator[str]:
    """The lines of a UTF-8 text file."""
    try:
        with open(path, encoding="utf-8") as file:
            yield from _told(file, f"reading {path}: line", verbose)
    except UnicodeDecodeError as error:
        raise ArgumentError(f"text file {path} is not UTF-8: {error.reason}") from None
    except OSError as error:
        raise ArgumentError(f"text file {path} cannot be read: {error.strerror}") from error


def _told(items: Iterable[Any], what: str, verbose: bool) -> Iterator[Any]:
    """The items, with a line in the log every half million where that is asked for."""
    for number, item in enumerate(items):
        if verbose and number % 500_000 == 0:
            logger.info("%s %d", what, number)
        yield item
