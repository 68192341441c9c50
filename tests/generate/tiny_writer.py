"""A tiny model that writes something else with every prompt, and Hugging Face's own with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_finetuning import checkpoint
from transformers import XLNetLMHeadModel, XLNetTokenizer

from xlnet_fast.generate import GenerateOptions

# Of 3, 3, 2 and 15 tokens; the first two stand side by side without padding.
EQUAL = ("the value of", "with the function")
PROMPTS = (*EQUAL, "a class", "the function is an object with a value of this class")


def written_checkpoint(folder: Path, **shape: Any) -> Path:
    """Weights so wide that greedy text does not repeat one token at once."""
    return checkpoint(folder, **{"initializer_range": 0.4, **shape})


def plain(folder: Path) -> Any:
    """Hugging Face's own model."""
    return XLNetLMHeadModel.from_pretrained(folder).eval()


def ids_of(folder: Path, text: str) -> torch.Tensor:
    """(1, I) without <sep> and <cls>."""
    tokenizer = XLNetTokenizer.from_pretrained(folder)
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


def decoded(folder: Path, rows: torch.Tensor) -> list[str]:
    """The texts of rows of tokens."""
    tokenizer = XLNetTokenizer.from_pretrained(folder)
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def options(folder: Path, *prompts: str, **changes: Any) -> GenerateOptions:
    """Greedy, twelve tokens; ``changes`` replace fields."""
    settings = {"model": str(folder), "prompt": prompts or EQUAL, "max_new_tokens": 12}
    return GenerateOptions(**{**settings, **changes})
