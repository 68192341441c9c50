"""The smallest pretraining that still has every part: real text, memory, two epochs and more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from xlnet_fast.text import builtin_articles
from xlnet_fast.train.pretraining import PretrainOptions

CHARACTERS = 6_000


def write_text(path: Path, characters: int = CHARACTERS) -> Path:
    """Articles of the built-in text with an empty line between two, about so many characters."""
    articles: list[str] = []
    for article in builtin_articles().values():
        text = "\n".join(article)
        if len(text) < characters // 3:
            articles.append(text)
        if sum(map(len, articles)) > characters:
            break
    path.write_text("\n\n".join(articles), encoding="utf-8")
    return path


def tiny_options(output: Path, text: Path, **changes: Any) -> PretrainOptions:
    """About 6 steps an epoch in fp32, one layer of width 16; `changes` replace fields."""
    options = PretrainOptions(
        output=output,
        text=(str(text),),
        vocab_size=300,
        d_model=16,
        n_layer=1,
        n_head=2,
        d_inner=16,
        seq_len=32,
        batch_size=16,
        eval_share=0.2,
        steps=6,
        eval_every=3,
        save_every=3,
        log_every=1,
        learning_rate=5e-3,
        keep=9,
    )
    return replace(options, **changes)
