"""Texts to be written: prompts of real text, and noise that makes them vary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .corpus import Corpus
from .model import round_weights
from .rel_attention import DTYPES

TEXT, STEP = "text", "step"
ARCHITECTURE = "XLNetLMHeadModel"
_SCORES, _LAYERS = 3.0, 3.2  # times the root of the width: deviations of what weights give


@dataclass(frozen=True)
class GenerationCase:
    """A batch of prompts, how many tokens follow each, and the dtype."""

    batch: int
    prompt: int
    new: int
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.batch < 1 or self.prompt < 1 or self.new < 2:
            raise ValueError(
                "batch and prompt must be >= 1 and new >= 2, got "
                f"{self.batch}, {self.prompt} and {self.new}"
            )

    @property
    def label(self) -> str:
        """A short name for progress bars."""
        return f"{self.batch}x{self.prompt}+{self.new} {self.dtype}"


def prompts(corpus: Corpus, batch: int, length: int) -> Tensor:
    """Return (batch, length) int64: texts one after the other, from the beginning again at the end.

    All of one length, for Hugging Face's model reads padding as if it were text.
    """
    return corpus.ids[torch.arange(batch * length) % len(corpus.ids)].view(batch, length)


@torch.no_grad()
def widen(model: Any) -> None:
    """Widen a random model's weights in place, until its text depends on what it has read.

    Scores get a deviation of about 3, as a trained model's, so that the noise below chooses among
    the likely tokens, not among all. Layers get weights with which the text tells memory from none,
    and projections of the positions that are some per cent wrong from right ones, but not yet one
    rounding from another: at twice the width the layers make chaos of it.
    """
    root = model.config.d_model**0.5
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            deviation = _SCORES if "word_embedding" in name else _LAYERS
            weight.mul_(deviation / root / float(weight.std()))
    round_weights(model)


def noise(new: int, vocab_size: int) -> Tensor:
    """Return (new, V) fp32, what is added to the scores of each step: Gumbel's, always the same.

    The likeliest token of scores and noise is one drawn by their softmax, so the text varies as
    drawn text does, and the search is still a plain greedy one. Without it a model with random
    weights repeats a token for ever, and the check would see little.
    """
    uniform = torch.rand(new, vocab_size, generator=torch.Generator().manual_seed(0))
    return -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
