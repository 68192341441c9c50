"""Prompts: from options, a file or standard input, as token ids, and side by side in a batch."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xlnet_fast.errors import ArgumentError
from xlnet_fast.text import decode_text, load_text

STDIN = "-"


@dataclass(frozen=True)
class Prompt:
    """A prompt as it was given and as the model reads it.

    Attributes:
        text: as given. ids: of the prefix and the prompt. hidden: how many of them are the prefix.
    """

    text: str
    ids: list[int]
    hidden: int = 0


def gather(texts: tuple[str, ...], file: str | None) -> list[str]:
    """The prompts of a command: those given as such, then a file's, a line each.

    Args:
        file: a UTF-8 text file, "-" for standard input, or None.

    Raises:
        ArgumentError: the file cannot be read or holds nothing, or a prompt has no words; says
            which.
    """
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise ArgumentError(f"prompt {number} is empty, expected some words to go on from")
    if file is None:
        return list(texts)
    if file == STDIN:
        content = decode_text(sys.stdin.buffer.read(), "standard input", min_characters=1)
    else:
        content = load_text(file, min_characters=1)
    lines = content.removesuffix("\n").split("\n")  # not at U+2028 and others of splitlines
    lines = [line.removesuffix("\r") for line in lines]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            where = "standard input" if file == STDIN else file
            raise ArgumentError(f"line {number} of {where} is empty, expected a prompt on each")
    return [*texts, *lines]


def encode(tokenizer: Any, text: str, prefix: str | None = None) -> Prompt:
    """A prompt's ids, without the <sep> and <cls> that end a text: it is to be gone on with.

    Raises:
        ArgumentError: it comes to no token, such as one of nothing but control characters.
    """
    hidden: list[int] = []
    if prefix:
        hidden = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ArgumentError(f"the prompt {text!r} comes to no token, expected some words")
    return Prompt(text, [*hidden, *ids], len(hidden))


def side_by_side(prompts: list[Prompt], pad_token_id: int | None) -> tuple[Tensor, Tensor | None]:
    """A batch: ids (B, I) int64, padded on the left, and its mask (B, I), None without padding.

    Raises:
        ArgumentError: the prompts are of unequal length, and nothing can be put beside them.
    """
    longest = max(len(prompt.ids) for prompt in prompts)
    missing = [longest - len(prompt.ids) for prompt in prompts]
    if not any(missing):
        return torch.tensor([prompt.ids for prompt in prompts]), None
    if pad_token_id is None:
        raise ArgumentError(
            "prompts of unequal length need a padding token, and the tokenizer has none: set "
            "tokenizer.pad_token, or give a batch_size of 1"
        )
    rows = [[pad_token_id] * gap + prompt.ids for gap, prompt in zip(missing, prompts, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in missing]
    return torch.tensor(rows), torch.tensor(mask)
