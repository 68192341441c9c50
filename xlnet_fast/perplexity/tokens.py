"""A text as token ids, each with the characters of the text that it stands for.

Bits per character are bits per token times tokens per character, over any part of a text: so each
token has a place, up to which the text has been read with it. What no token stands for, such as
white space, counts to the token behind it, or at the end of the text to the last.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xlnet_fast.errors import ArgumentError

Ints = NDArray[np.int64]


class Part(NamedTuple):
    """Some text, a line as a rule, and its tokens.

    Attributes:
        text: with what ends the line. ids: of its tokens.
        ends: up to which character of ``text`` each token goes, in ascending order; None: nobody
            knows, and the tokens share the text alike.
        unknown: of each, whether the vocabulary lacks it.
    """

    text: str
    ids: list[int]
    ends: list[int] | None
    unknown: list[bool]


Encoder = Callable[[Iterable[str]], Iterator[Part]]
"""Lines, each with what ends it, to their parts."""


@dataclass(frozen=True)
class Tokens:
    """A text, read.

    Attributes:
        ids: (T,). characters, utf8: (T,) how many characters and bytes of the text have been read
            with each token. unknown: (T,) bool, where the vocabulary lacks what the text has.
    """

    ids: Ints
    characters: Ints
    utf8: Ints
    unknown: NDArray[np.bool_]

    def __len__(self) -> int:
        """T."""
        return len(self.ids)


def read(text: str, encode: Encoder, name: str, limit: int | None = None) -> Tokens:
    """Read a text, or its beginning.

    Args:
        encode: makes the tokens. name: of the text, for messages. limit: of the tokens.

    Raises:
        ArgumentError: it has fewer than two tokens, or one that cannot be encoded.
    """
    ids, characters, utf8, unknown = array("q"), array("q"), array("q"), array("b")
    begin = begin_utf8 = 0
    for part in encode(lines_of(text)):
        ids.extend(part.ids)
        unknown.extend(part.unknown)
        ends = _shared(part) if part.ends is None else part.ends
        characters.extend(begin + end for end in ends)
        sizes = _sizes(part.text, ends)
        utf8.extend(begin_utf8 + size for size in sizes)
        begin += len(part.text)
        begin_utf8 += _size(part.text)
        if limit is not None and len(ids) >= limit:
            break
    if len(ids) < 2:
        raise ArgumentError(
            f"{name} has {len(ids)} token{'s' * (len(ids) != 1)}, expected at least 2: the first "
            "is foretold by nothing"
        )
    if limit is None or len(ids) < limit:
        characters[-1], utf8[-1] = begin, begin_utf8
    kept = slice(None, limit)
    return Tokens(
        np.array(ids)[kept], np.array(characters)[kept], np.array(utf8)[kept],
        np.array(unknown, bool)[kept],
    )  # fmt: skip


def lines_of(text: str) -> Iterator[str]:
    r"""The lines of a text with what ends them; only "\n" does, not U+2028 and others."""
    return iter(io.StringIO(text, newline="\n"))


def _shared(part: Part) -> list[int]:
    count = max(1, len(part.ids))
    return [len(part.text) * number // count for number in range(1, len(part.ids) + 1)]


def _sizes(text: str, ends: list[int]) -> list[int]:
    """Bytes of the text up to each of the ends."""
    if text.isascii():
        return ends
    sizes, begin, size = [], 0, 0
    for end in ends:
        size += _size(text[begin:end])
        begin = end
        sizes.append(size)
    return sizes


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
