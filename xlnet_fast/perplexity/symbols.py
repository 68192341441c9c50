"""A text as the symbols of a Transformer-XL vocabulary: words, characters or bytes, line by line.

Source: ``Vocab.encode_file`` of the original code (kimiyoung/transformer-xl) and how its data sets
were made: WikiText-103 has an <eos> behind every line, also the empty ones; text8 has "_" for a
space; enwik8 has the decimal number of each byte, and nothing for the end of a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from xlnet_fast.errors import ArgumentError
from xlnet_fast.perplexity.options import AUTO, BYTES, CHARACTERS, RAW, TOKENIZED
from xlnet_fast.perplexity.tokens import Encoder, Part

_SAMPLE = 100_000
"""Characters at the beginning of a text by which its form is told."""
_STAND_ALONE = frozenset({",", ".", "@-@", "@,@", "@.@", "<unk>"})
"""Words of a tokenized text: elsewhere a comma belongs to the word before it."""
_WORD = re.compile(r"\S+")
_UNKNOWN = ("<unk>", "<UNK>")


@dataclass(frozen=True)
class Symbols:
    """A vocabulary, and how a text becomes its words.

    Attributes:
        ids: of the symbols. unknown: the id of what stands for others. eos: the symbol that stands
            for the end of a line. None: there is none.
        lower_case: whether it was made of lower case text.
        words: splits raw text as that was split which the vocabulary was made of.
        form: of all texts, where the tokenizer itself says how to split them.
    """

    ids: Mapping[str, int]
    unknown: int | None
    eos: str | None
    lower_case: bool
    words: Callable[[str], list[str]]
    form: str | None = None

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int, model: str) -> Symbols:
        """Those of a ``TransfoXLTokenizer``.

        Raises:
            ArgumentError: it has ids that the model lacks.
        """
        ids = tokenizer.sym2idx  # without tokens that were added behind them
        if len(ids) > vocab_size:
            raise ArgumentError(
                f"the vocabulary has {len(ids)} symbols, {model} only {vocab_size}: give the one "
                "that the model was trained with"
            )
        unknown = next((ids[name] for name in _UNKNOWN if name in ids), None)
        eos = str(tokenizer.eos_token) if str(tokenizer.eos_token) in ids else None
        form = TOKENIZED if tokenizer.tokenized else None
        if tokenizer.delimiter is not None:
            form = RAW  # of this tokenizer, that is between the delimiters
        return cls(ids, unknown, eos, tokenizer.lower_case, tokenizer.tokenize, form)

    def form_of(self, text: str) -> str:
        """In which form a text is: what the vocabulary is of, and whether words are apart."""
        if self.form is not None:
            return self.form
        sample = text[:_SAMPLE].split()
        plain = [name for name in self.ids if not re.fullmatch(r"<.+>", name)]
        if all(name.isascii() and name.isdigit() and int(name) < 256 for name in plain):
            return TOKENIZED if all(word in self.ids for word in sample) else BYTES
        if all(len(name) == 1 for name in plain):
            return TOKENIZED if all(len(word) == 1 for word in sample) else CHARACTERS
        apart = sum(word in _STAND_ALONE for word in sample)
        joined = sum(len(word) > 1 and word[-1] in ",." for word in sample)
        return TOKENIZED if apart > joined else RAW

    def encoder(self, form: str) -> Encoder:
        """What makes tokens of a text of a form, but "auto"."""
        assert form != AUTO
        split = {
            TOKENIZED: self._apart, RAW: self._raw, CHARACTERS: self._characters,
            BYTES: self._bytes,
        }[form]  # fmt: skip
        by_line = form in (TOKENIZED, RAW)

        def encode(lines: Iterable[str]) -> Iterator[Part]:
            for number, line in enumerate(lines, 1):
                names, ends = split(line)
                part = self._part(line, names, ends, number)
                yield self._ended(part) if by_line and self.eos is not None else part

        return encode

    def _part(self, line: str, names: list[str], ends: list[int] | None, number: int) -> Part:
        unknown = [name not in self.ids for name in names]
        if self.unknown is None and any(unknown):
            name = names[unknown.index(True)]
            raise ArgumentError(
                f"line {number}: the vocabulary has no {name!r}, nor an <unk> for what it lacks; "
                "is the text of another form (--form)?"
            )
        return Part(line, [self.ids.get(name, self.unknown or 0) for name in names], ends, unknown)

    def _ended(self, part: Part) -> Part:
        """With the <eos> of its line."""
        assert self.eos is not None
        ends = None if part.ends is None else [*part.ends, len(part.text)]
        return Part(part.text, [*part.ids, self.ids[self.eos]], ends, [*part.unknown, False])

    def _cased(self, line: str) -> str:
        return line.lower() if self.lower_case else line

    def _apart(self, line: str) -> tuple[list[str], list[int] | None]:
        """Words between white space."""
        found = list(_WORD.finditer(line))
        return [self._cased(match[0]) for match in found], [match.end() for match in found]

    def _raw(self, line: str) -> tuple[list[str], list[int] | None]:
        return self.words(line.strip()), None

    def _characters(self, line: str) -> tuple[list[str], list[int] | None]:
        space = " " if " " in self.ids else "_"
        names, ends = [], []
        for end, character in enumerate(line, 1):
            name = self._end_of_line(character, character)
            if name is not None:
                names.append(space if name == " " else self._cased(name))
                ends.append(end)
        return names, ends

    def _bytes(self, line: str) -> tuple[list[str], list[int] | None]:
        names, ends = [], []
        for end, character in enumerate(line, 1):
            for byte in character.encode("utf-8"):
                name = self._end_of_line(character, str(byte))
                if name is not None:
                    names.append(name)
                    ends.append(end)
        return names, ends

    def _end_of_line(self, character: str, name: str) -> str | None:
        """What stands for the end of a line: a symbol of its own, <eos>, or nothing (enwik8)."""
        return name if character != "\n" or name in self.ids else self.eos
