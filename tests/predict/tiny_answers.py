"""A tiny classifier and files of records, for the tests of prediction."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import XLNetConfig, XLNetForSequenceClassification, XLNetTokenizer

from xlnet_fast.text import builtin_text, train_tokenizer

LABELS = ("bad", "good", "so so")
WORDS = ("the", "value", "of", "a", "class", "is", "an", "object", "import", "café", "naïve")


def classifier(folder: Path, **settings: Any) -> Path:
    """A random XLNetForSequenceClassification with its tokenizer; texts get different labels."""
    train_tokenizer(builtin_text()[:20_000], 300, folder)
    torch.manual_seed(0)
    usual = {
        "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64, "initializer_range": 0.3,
        "vocab_size": len(XLNetTokenizer.from_pretrained(folder)),
        "id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)},
    }  # fmt: skip
    XLNetForSequenceClassification(XLNetConfig(**{**usual, **settings})).save_pretrained(folder)
    return folder


def texts(count: int, longest: int = 20, seed: int = 0) -> list[str]:
    """Texts of 1 to ``longest`` words."""
    generator = random.Random(seed)
    return [
        " ".join(generator.choices(WORDS, k=generator.randint(1, longest))) for _ in range(count)
    ]


def write_lines(path: Path, records: list[Any]) -> Path:
    """JSON lines."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return path
