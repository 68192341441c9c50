"""Plain text as the pieces of words that ``pretrain`` makes of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from xlnet_fast.perplexity.tokens import Encoder, Part


def encoder(tokenizer: Any, eod: int, unk: int) -> Encoder:
    """What makes tokens of lines as ``pretrain`` does: ``eod`` ends a document, before empty lines.

    Args:
        tokenizer: of pieces, a fast one. eod, unk: ids of the end of a document, and of what the
            vocabulary lacks.
    """
    special = re.compile("|".join(map(re.escape, tokenizer.all_special_tokens)))
    reserved = set(tokenizer.all_special_ids)

    def encode(lines: Iterable[str]) -> Iterator[Part]:
        inside = False
        for line in lines:
            if line.strip():
                yield part_of(line)
                inside = True
            else:
                yield Part(line, [eod] * inside, None, [False] * inside)
                inside = False
        if inside:
            yield Part("", [eod], None, [False])

    def part_of(line: str) -> Part:
        text = line.strip()
        # A "<sep>" that stands in a text is text, not the token: with a space it is no piece.
        clean = special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        encoded = tokenizer(clean, add_special_tokens=False, return_offsets_mapping=True)
        # What normalization makes such a token of is none either.
        ids = [unk if i in reserved else i for i in encoded["input_ids"]]
        ends = None
        if clean == text:
            before = len(line) - len(line.lstrip())
            ends = list(accumulate((before + end for _, end in encoded["offset_mapping"]), max))
        return Part(line, ids, ends, [i == unk for i in ids])

    return encode
