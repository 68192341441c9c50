"""CoNLL files: a word a line, its tag in the last column, an empty line between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import datasets

from xlnet_fast.errors import ArgumentError

_DOCUMENT = "-DOCSTART-"  # a line of its own before each text
_BLANKS = re.compile(" +")
_WORDS = datasets.Sequence(datasets.Value("string"))


def read_conll(path: Path) -> datasets.Dataset:
    """The sentences of a CoNLL file in UTF-8, a row each.

    Columns are parted by tabs where a line has one, else by spaces. Those of the rows are lists of
    strings: "tokens", the first, and "tags", the last; and all by their numbers, "1", "2", ...
    A file of one column has no tags. Lines that begin with -DOCSTART- are left out.

    Raises:
        ArgumentError: a line has more or fewer columns than the first one, or an empty one.
    """
    sentences = list(_sentences(path))
    width = len(sentences[0][0]) if sentences else 0
    if width == 0:
        raise ArgumentError(f"{path} holds no rows")
    columns = {
        str(i + 1): [[word[i] for word in words] for words in sentences] for i in range(width)
    }
    named = {"tokens": columns["1"]} | ({"tags": columns[str(width)]} if width > 1 else {})
    everything = named | columns
    return datasets.Dataset.from_dict(
        everything, features=datasets.Features(dict.fromkeys(everything, _WORDS))
    )


def _sentences(path: Path) -> Iterator[list[list[str]]]:
    """The columns of each word of each sentence."""
    sentence: list[list[str]] = []
    width = 0
    with path.open(encoding="utf-8-sig", newline="\n") as file:  # other line ends may be in words
        for number, line in enumerate(file, 1):
            line = line.rstrip("\r\n").strip(" ")
            if not line.strip("\t") or line.startswith(_DOCUMENT):
                if sentence:
                    yield sentence
                sentence = []
                continue
            columns = line.split("\t") if "\t" in line else _BLANKS.split(line)
            width = width or len(columns)
            if len(columns) != width or "" in columns:
                raise ArgumentError(
                    f"line {number} of {path} has {len(columns)} columns, {line[:60]!r}: expected "
                    f"{width}, as in its first line, none empty; a word a line, its tag last, and "
                    "an empty line between sentences"
                )
            sentence.append(columns)
    if sentence:
        yield sentence
