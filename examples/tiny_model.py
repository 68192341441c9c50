"""A tiny XLNet with random weights, so that the examples run anywhere and without a network."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import XLNetConfig, XLNetForSequenceClassification

from xlnet_fast.text import builtin_text, train_tokenizer

GOOD = ("a fine film", "a warm and clever story", "bright from the first scene to the last")
BAD = ("a dull film", "a cold and clumsy story", "grey from the first scene to the last")
TEXTS = [
    f"{start} {text}" for text in (*GOOD, *BAD) for start in ("It is", "They say it is", "Oh,")
]
LABELS = [1] * 9 + [0] * 9


def tiny_model(folder: Path) -> str:
    """Save a checkpoint with a tokenizer and two labels under `folder`, and return its path."""
    train_tokenizer(builtin_text()[:60_000], 400, folder)
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=400, d_model=64, n_layer=2, n_head=2, d_inner=128, num_labels=2,
        initializer_range=0.1,  # wider than usual: so small a model learns nothing from less
    )  # fmt: skip
    XLNetForSequenceClassification(config).save_pretrained(folder)
    return str(folder)
