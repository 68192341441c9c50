"""Checkpoints as the original codes leave them, and the losses of what is made of them."""

from __future__ import annotations

import argparse
import sys
import types
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import torch
from original_transfo_xl import Original, losses, named_as_nvidia, weights_of
from torch import Tensor

from xlnet_fast.models.transfo_xl import TransfoXLLMHeadModel
from xlnet_fast.models.transfo_xl.vocabulary import read_vocabulary
from xlnet_fast.tolerance import assert_within

F64, F32 = torch.float64, torch.float32
TIGHT = 1e-11
"""float64: largest difference, relative to the largest loss (or 1)."""
LENGTHS = [4, 7, 3]
"""Of segments: shorter than the memory, longer, and shorter than what is remembered."""


class Vocab:
    """As the class that NVIDIA's checkpoints name, which is gone when they are read."""

    def __init__(self, words: list[str]) -> None:
        self.counter, self.lower_case = Counter(words), False
        self.idx2sym = words
        self.sym2idx = OrderedDict((word, number) for number, word in enumerate(words))


def words_of(original: Original) -> list[str]:
    return ["<eos>", *(f"word{number}" for number in range(1, original.n_token))]


def write_kimiyoung(
    folder: Path, original: Original, dtype: torch.dtype = F64, **changed: Any
) -> Path:
    path = folder / "export.pt"
    args = {**original.args(), **changed}
    torch.save({"state_dict": weights_of(original, dtype), "args": args}, path)
    return path


def write_nvidia(
    folder: Path, original: Original, dtype: torch.dtype = F64, **options: Any
) -> Path:
    """With the class of the vocabulary known while it is written, and then no longer."""
    path, state = folder / "checkpoint_best.pt", weights_of(original, dtype)
    config = {**original.args(), "tie_weight": original.tied, "tie_projs": list(original.tie_projs)}
    modules = {"utils": types.ModuleType("utils"), "utils.vocabulary": types.ModuleType("v")}
    modules["utils.vocabulary"].Vocab = Vocab  # type: ignore[attr-defined]
    kept, Vocab.__module__ = Vocab.__module__, "utils.vocabulary"
    sys.modules.update(modules)
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(4)}}, "param_groups": []}
    try:
        torch.save(
            {
                "args": argparse.Namespace(**original.args(), vocab="word", work_dir=None),
                "model_config": config,
                "model_state": named_as_nvidia(original, state),
                "optimizer_state": optimizer,
                "vocab": Vocab(words_of(original)),
                "best_val_loss": 3.5,
            },
            path,
            **options,
        )
    finally:
        Vocab.__module__ = kept
        for name in modules:
            del sys.modules[name]
    return path


def loaded(folder: Path, cls: Any = TransfoXLLMHeadModel, dtype: torch.dtype = F64) -> Any:
    return cls.from_pretrained(folder, dtype=dtype).eval()


def text_of(original: Original) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, original.n_token, (2, sum(LENGTHS) + 1), generator=generator)


@torch.no_grad()
def losses_of(model: Any, text: Tensor) -> list[Tensor]:
    """Of the drop-in, from its log-probabilities; those that labels give must be the same."""
    at, mems, found = 0, None, []
    for length in LENGTHS:
        words, targets = text[:, at : at + length], text[:, at + 1 : at + 1 + length]
        out = model(words, mems=mems)
        from_scores = -out.prediction_scores.gather(-1, targets[..., None])[..., 0]
        by_labels = model(words, mems=mems, labels=words).losses
        torch.testing.assert_close(by_labels, from_scores[:, :-1], rtol=1e-4, atol=1e-5)
        found.append(from_scores)
        at, mems = at + length, out.mems
    return found


def check_losses(folder: Path, original: Original, dtype: torch.dtype = F64) -> None:
    """Three segments of the drop-in against the original by hand."""
    text = text_of(original)
    ours = losses_of(loaded(folder, dtype=dtype), text)
    weights = weights_of(original, dtype)
    exact = losses(original, {name: x.to(F64) for name, x in weights.items()}, text, LENGTHS)
    eager = exact if dtype == F64 else losses(original, weights, text, LENGTHS)
    for number, (one, by_hand, right) in enumerate(zip(ours, eager, exact, strict=True)):
        if dtype == F64:
            worst = float((one - right).abs().max())
            assert worst < TIGHT * max(1.0, float(right.abs().max())), (number, worst)
        else:
            assert_within(one, by_hand, right, f"segment {number}")


def vocabulary_of(folder: Path) -> list[str]:
    return read_vocabulary(folder / "vocab.json").symbols
