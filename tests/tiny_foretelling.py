"""A tiny Transformer-XL with a vocabulary of words, and texts of them, to be foretold."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from xlnet_fast.models.transfo_xl import TransfoXLConfig, TransfoXLLMHeadModel

WORDS = tuple(f"w{number}" for number in range(37))
SYMBOLS = ("<eos>", "<unk>", ",", *WORDS)
"""Two clusters behind the first, so that words of each are foretold."""
SHAPE: dict[str, Any] = {
    "cutoffs": [14, 27], "d_model": 16, "d_embed": 16, "n_head": 2, "d_head": 8, "d_inner": 32,
    "div_val": 2, "n_layer": 2, "mem_len": 8, "clamp_len": 5, "same_length": True,
    "init_std": 0.3, "proj_init_std": 0.3, "proj_share_all_but_first": False,
    "tie_word_embeddings": False,
}  # fmt: skip


def write_vocabulary(folder: Path, symbols: tuple[str, ...]) -> Path:
    """The file that ``TransfoXLTokenizer`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.json"
    path.write_text(json.dumps({name: place for place, name in enumerate(symbols)}))
    return path


def transfo_xl(folder: Path, symbols: tuple[str, ...] = SYMBOLS, **changes: Any) -> Path:
    """A checkpoint with random weights; ``changes`` replace what the config says."""
    torch.manual_seed(0)
    config = TransfoXLConfig(**{**SHAPE, "vocab_size": len(symbols), **changes})
    model = TransfoXLLMHeadModel(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    write_vocabulary(folder, symbols)
    return folder


def words_text(lines: int, seed: int = 0) -> str:
    """Lines of two to seven words, one of them a comma; some are empty."""
    generator = random.Random(seed)
    made = []
    for number in range(lines):
        words = [generator.choice(WORDS) for _ in range(generator.randint(1, 6))]
        words.insert(1, ",")
        made.append("" if number % 5 == 3 else f" {' '.join(words)} ")
    return "\n".join(made) + "\n"
